use std::borrow::Cow;
use std::sync::OnceLock;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::node::plane::is_even;
use crate::node::{Json, Node, NodeReader, Plane, PlaneMap, SymbolBuf, decode, join};
use crate::source::Tensor;
use crate::storage::{Part, PartKind, PartSink};

/// What a format needs beside the codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// Its key in the description, and the name of its parts.
    pub name: &'static str,
    /// What its parts are billed as.
    pub kind: PartKind,
    /// `[rows, columns]` of its values.
    pub shape: [usize; 2],
    /// How they are stored.
    pub encoding: Encoding,
}

/// How the values of a [`Slot`] are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// As any node: floats, or codes of a leaf in turn.
    Node,
    /// As integers, in a plane.
    Plane,
    /// As one part of floats, which the description does not mention: what first versions wrote.
    Floats,
}

/// What is in a slot.
#[derive(Debug)]
pub enum Child {
    /// A node.
    Node(Box<dyn Node>),
    /// A plane, whose symbols are the values.
    Plane(Box<dyn Plane>),
    /// Floats which their type represents, row-major.
    Floats {
        /// Stored type.
        dtype: DType,
        /// The values.
        values: Vec<f32>,
    },
}

/// A child in its slot, its values read once.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) slot: Slot,
    pub(super) child: Child,
    values: OnceLock<Vec<f32>>,
}

impl Held {
    /// Puts a child in its slot.
    ///
    /// # Errors
    /// `ShapeMismatch` if it does not fit; `Numerical` for floats that are not finite.
    pub(super) fn new(slot: Slot, child: Child) -> Result<Self> {
        let [rows, cols] = slot.shape;
        let fits = match (&child, slot.encoding) {
            (Child::Node(node), Encoding::Node) => node.shape() == slot.shape,
            (Child::Plane(plane), Encoding::Plane) => is_even(&**plane, rows, cols),
            (Child::Floats { values, .. }, Encoding::Floats) => values.len() == rows * cols,
            _ => false,
        };
        if !fits {
            return Err(Error::shape(format!("{} do not fill {rows} x {cols}", slot.name)));
        }
        if let Child::Floats { values, .. } = &child {
            check_finite(slot.name, values)?;
        }
        Ok(Self { slot, child, values: OnceLock::new() })
    }

    pub(super) fn read_from(
        slot: Slot,
        reader: &NodeReader<'_>,
        json: &Json,
        prefix: &str,
    ) -> Result<Self> {
        let name = join(prefix, slot.name);
        let child = match slot.encoding {
            Encoding::Node => Child::Node(reader.child(json, slot.name, prefix)?),
            Encoding::Plane => Child::Plane(reader.plane(json, slot.name, &name)?),
            Encoding::Floats => {
                let part = reader.part(&name)?;
                if !part.dtype().is_float() {
                    return Err(Error::corruption(format!("{name} of type {:?}", part.dtype())));
                }
                let values = part.to_matrix()?.into_raw_vec_and_offset().0;
                Child::Floats { dtype: part.dtype(), values }
            }
        };
        Self::new(slot, child).map_err(|e| Error::corruption(e.message()))
    }

    /// The values, row-major: read by the first use, finite.
    ///
    /// # Errors
    /// `Corruption` if the stored form turns out to be invalid.
    pub(super) fn values(&self) -> Result<&[f32]> {
        if let Child::Floats { values, .. } = &self.child {
            return Ok(values);
        }
        if self.values.get().is_none() {
            let _ = self.values.set(self.read()?);
        }
        Ok(self.values.get().expect("set above"))
    }

    fn read(&self) -> Result<Vec<f32>> {
        match &self.child {
            Child::Node(node) => {
                let values = decode(&**node)?.into_raw_vec_and_offset().0;
                check_finite(self.slot.name, &values)
                    .map_err(|e| Error::corruption(e.message()))?;
                Ok(values)
            }
            Child::Plane(plane) => {
                let mut symbols = SymbolBuf::of(&**plane);
                let symbols = symbols.read(&**plane, 0..plane.rows())?;
                Ok(symbols.iter().map(f32::from).collect())
            }
            Child::Floats { values, .. } => Ok(values.clone()),
        }
    }

    /// Its description, where it has one.
    pub(super) fn describe(&self) -> Option<Json> {
        match &self.child {
            Child::Node(node) => Some(node.describe()),
            Child::Plane(plane) => Some(plane.describe()),
            Child::Floats { .. } => None,
        }
    }

    pub(super) fn parts(&self, prefix: &str, sink: &mut dyn PartSink) -> Result<()> {
        let Slot { name, kind, shape, .. } = self.slot;
        let name = join(prefix, name);
        match &self.child {
            Child::Node(node) => node.parts(&name, &mut Billed { kind, sink }),
            Child::Plane(plane) => plane.parts(&name, kind, sink),
            Child::Floats { dtype, values } => {
                let mut bytes = Vec::new();
                dtype.write_f32(values, &mut bytes)?;
                let (shape, bytes) = (shape.to_vec(), Cow::Owned(bytes));
                sink.part(Part { name, kind, dtype: *dtype, shape, bytes })
            }
        }
    }

    pub(super) fn map_planes(self, f: &mut PlaneMap<'_>) -> Result<Self> {
        let child = match self.child {
            Child::Node(node) => Child::Node(node.map_planes(f)?),
            Child::Plane(plane) => Child::Plane(plane.map_inner(f)?),
            floats => floats,
        };
        Ok(Self { child, ..self })
    }
}

fn check_finite(name: &str, values: &[f32]) -> Result<()> {
    match values.iter().position(|v| !v.is_finite()) {
        Some(i) => Err(Error::numerical(format!("{name}: value {i} is {}", values[i]))),
        None => Ok(()),
    }
}

/// Bills all parts of a child as what it is for.
struct Billed<'a> {
    kind: PartKind,
    sink: &'a mut dyn PartSink,
}

impl PartSink for Billed<'_> {
    fn part(&mut self, part: Part<'_>) -> Result<()> {
        self.sink.part(Part { kind: self.kind, ..part })
    }
}
