//! Stored tensors: as nodes, as matrices wherever they lie, as vectors.

use std::collections::BTreeMap;

use ndarray::Array2;
use tensorpress_tensor::node::{Dense, Json};
use tensorpress_tensor::rewrite::{LinearSpec, Role};
use tensorpress_tensor::{DType, Error, Node, RawTensor, Result, Tensor};

use super::{Source, at};
use crate::layers::Linear;

impl Source {
    /// A weight as a node: read through the registry if it is compressed, otherwise a view of the memory map in the
    /// stored type; nothing is copied.
    ///
    /// # Errors
    /// `InsufficientData` if there is no such weight; those of reading a compressed one; each names tensor and file.
    pub fn weight(&self, name: &str) -> Result<Box<dyn Node>> {
        let file = self.file_of(name);
        let read = || -> Result<Box<dyn Node>> {
            match self.trees.get(name) {
                Some(tree) => self.registry.read(tree, name, &self.checkpoint),
                None => Ok(Box::new(Dense::new(&self.checkpoint.tensor(name)?)?)),
            }
        };
        at(read(), name, file.as_deref())
    }

    /// [`Source::weight`] of a shape that the config implies.
    pub(super) fn weight_of(&self, name: &str, shape: [usize; 2]) -> Result<Box<dyn Node>> {
        let node = self.weight(name)?;
        self.check_shape(name, &shape, &node.shape())?;
        Ok(node)
    }

    pub(super) fn check_shape(&self, name: &str, config: &[usize], stored: &[usize]) -> Result<()> {
        if config == stored {
            return Ok(());
        }
        let message = format!("stored as {stored:?}, but config.json implies {config:?}");
        at(Err(Error::shape(message)), name, self.file_of(name).as_deref())
    }

    /// A vector of finite values.
    pub(super) fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        let file = self.file_of(name);
        let tensor = at(self.checkpoint.tensor(name), name, file.as_deref())?;
        self.check_shape(name, &[len], tensor.shape())?;
        let values = at(tensor.to_matrix(), name, file.as_deref())?.into_raw_vec_and_offset().0;
        self.finite(name, values)
    }

    /// So many finite values, of a vector, or of a matrix with a row a head.
    pub(super) fn values(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        let file = self.file_of(name);
        let tensor = at(self.checkpoint.tensor(name), name, file.as_deref())?;
        if tensor.shape().len() != 2 || tensor.shape().iter().product::<usize>() != len {
            return self.vector(name, len);
        }
        let values = at(tensor.to_matrix(), name, file.as_deref())?.into_raw_vec_and_offset().0;
        self.finite(name, values)
    }

    /// A small matrix of finite values.
    pub(super) fn table(&self, name: &str, shape: [usize; 2]) -> Result<Array2<f32>> {
        let file = self.file_of(name);
        let tensor = at(self.checkpoint.tensor(name), name, file.as_deref())?;
        self.check_shape(name, &shape, tensor.shape())?;
        let values = at(tensor.to_matrix(), name, file.as_deref())?.into_raw_vec_and_offset().0;
        Ok(Array2::from_shape_vec(shape, self.finite(name, values)?).expect("shape was checked"))
    }

    /// All finite values of a tensor of this shape.
    pub(super) fn array(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let file = self.file_of(name);
        let tensor = at(self.checkpoint.tensor(name), name, file.as_deref())?;
        self.check_shape(name, shape, tensor.shape())?;
        let values = at(tensor.to_matrix(), name, file.as_deref())?.into_raw_vec_and_offset().0;
        self.finite(name, values)
    }

    pub(super) fn finite(&self, name: &str, values: Vec<f32>) -> Result<Vec<f32>> {
        match values.iter().position(|v| !v.is_finite()) {
            None => Ok(values),
            Some(i) => {
                let message = format!("entry {i} is {}", values[i]);
                at(Err(Error::numerical(message)), name, self.file_of(name).as_deref())
            }
        }
    }

    /// The stored values `[out, in]` of a linear layer that is not compressed, in the stored type.
    ///
    /// # Errors
    /// As [`Source::weight`].
    pub fn stored(&self, spec: &LinearSpec) -> Result<RawTensor> {
        let Some(place) = spec.place.as_ref().filter(|_| !self.is_moved(spec)) else {
            let file = self.file_of(&spec.name);
            return at(self.checkpoint.tensor(&spec.name), &spec.name, file.as_deref());
        };
        let read = || -> Result<RawTensor> {
            let tensor = self.checkpoint.tensor(&place.tensor)?;
            let tensor = match place.index {
                None => tensor,
                Some(index) => matrix_of(&tensor, index)?,
            };
            if place.transposed { transposed(&tensor) } else { Ok(tensor) }
        };
        at(read(), &spec.name, self.file_of(&place.tensor).as_deref())
    }

    /// The stored type of a linear layer that is not compressed.
    ///
    /// # Errors
    /// As [`Source::weight`].
    pub fn dtype_of(&self, spec: &LinearSpec) -> Result<DType> {
        match spec.place.as_ref().filter(|_| !self.is_moved(spec)) {
            Some(place) => self.checkpoint.dtype(&place.tensor),
            None => self.checkpoint.dtype(&spec.name),
        }
    }

    /// The stored bias of a linear layer, if it has one, and its type.
    ///
    /// # Errors
    /// As [`Source::weight`].
    pub fn stored_bias(&self, spec: &LinearSpec) -> Result<Option<(DType, Vec<f32>)>> {
        let place = spec.place.as_ref();
        let stacked = place.and_then(|place| Some((place.bias.as_ref()?, place.index?)));
        match stacked {
            // What is called so may be anything.
            _ if spec.role == Role::Other => Ok(None),
            _ if self.checkpoint.contains(&spec.bias) => {
                let values = self.vector(&spec.bias, spec.shape[0])?;
                Ok(Some((self.checkpoint.dtype(&spec.bias)?, values)))
            }
            Some((tensor, index)) => {
                let values = self.stacked_vector(tensor, index, spec.shape[0])?;
                Ok(Some((self.checkpoint.dtype(tensor)?, values)))
            }
            None => Ok(None),
        }
    }

    /// A layer of a stack, or one that was turned, lies under its own name once it is compressed or written by us.
    pub(super) fn is_moved(&self, spec: &LinearSpec) -> bool {
        let place = spec.place.as_ref();
        let elsewhere = place.is_some_and(|place| place.tensor != spec.name);
        self.trees.contains_key(&spec.name) || elsewhere && self.checkpoint.contains(&spec.name)
    }

    /// The weight of a linear layer as a node.
    pub(super) fn node(&self, spec: &LinearSpec) -> Result<Box<dyn Node>> {
        if spec.role == Role::Other {
            return self.weight(&spec.name);
        }
        if spec.place.is_none() || self.is_moved(spec) {
            return self.weight_of(&spec.name, spec.shape);
        }
        let stored = self.stored(spec)?;
        self.check_shape(&spec.name, &spec.shape, stored.shape())?;
        Ok(Box::new(Dense::new(&stored)?))
    }

    pub(super) fn linear(&self, spec: &LinearSpec) -> Result<Linear> {
        // A bias the config does not know may have been added by compression, as a correction.
        let bias = match self.stored_bias(spec)? {
            Some((_, bias)) => Some(bias),
            None if spec.needs_bias => Some(self.vector(&spec.bias, spec.shape[0])?),
            None => None,
        };
        let file = self.file_of(spec.place.as_ref().map_or(&spec.name, |place| &place.tensor));
        let (name, weight) = (spec.name.clone(), self.node(spec)?.into());
        Ok(Linear { name, file, weight, bias, input: Some(spec.input) })
    }

    /// A vector of a stack of them.
    pub(super) fn stacked_vector(&self, name: &str, index: usize, len: usize) -> Result<Vec<f32>> {
        let file = self.file_of(name);
        let read = || -> Result<Vec<f32>> {
            let tensor = matrix_of(&self.checkpoint.tensor(name)?, index)?;
            self.check_shape(name, &[len], tensor.shape())?;
            Ok(tensor.to_matrix()?.into_raw_vec_and_offset().0)
        };
        self.finite(name, at(read(), name, file.as_deref())?)
    }

    /// The file a weight is in, or the folder for one that is spread over parts.
    pub(super) fn file_of(&self, name: &str) -> Option<std::path::PathBuf> {
        let direct = self.checkpoint.file_of(name);
        let parts = || {
            let part = self.checkpoint.names().find(|n| is_part(n, name))?;
            self.checkpoint.file_of(part)
        };
        direct.or_else(parts).map(Into::into)
    }
}

/// One tensor of a stack.
fn matrix_of(stack: &RawTensor, index: usize) -> Result<RawTensor> {
    let [count, rest @ ..] = stack.shape() else {
        return Err(Error::shape("a scalar where a stack is needed"));
    };
    if index >= *count {
        return Err(Error::shape(format!("a stack of {count}, number {index} is needed")));
    }
    let len = rest.iter().product::<usize>() * stack.dtype().size();
    RawTensor::new(
        stack.dtype(),
        rest.to_vec(),
        stack.bytes().slice(index * len..(index + 1) * len),
    )
}

/// A matrix with rows for columns.
fn transposed(matrix: &RawTensor) -> Result<RawTensor> {
    let [rows, cols] = *matrix.shape() else {
        return Err(Error::shape(format!("{:?} where a matrix is needed", matrix.shape())));
    };
    let size = matrix.dtype().size();
    let mut bytes = Vec::with_capacity(matrix.bytes().len());
    for col in 0..cols {
        for row in 0..rows {
            let from = (row * cols + col) * size;
            bytes.extend_from_slice(&matrix.bytes()[from..from + size]);
        }
    }
    RawTensor::new(matrix.dtype(), vec![cols, rows], bytes.into())
}

/// The compressed weight that a stored tensor is a part of: what its name says before one of its dots.
pub(super) fn part_of<'n>(trees: &BTreeMap<String, Json>, name: &'n str) -> Option<&'n str> {
    name.match_indices('.').map(|(at, _)| &name[..at]).find(|weight| trees.contains_key(*weight))
}

/// Whether a stored tensor is a part of the compressed weight `weight`.
pub(super) fn is_part(name: &str, weight: &str) -> bool {
    name.strip_prefix(weight).is_some_and(|rest| rest.starts_with('.'))
}
