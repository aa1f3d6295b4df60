//! Types of numbers.

use std::ffi::c_void;

use press::entropy::ValueType;
use press::tensor::half::{bf16, f16};
use press::tensor::{DType, kernels};

use crate::memory::{Span, slice, span};
use crate::status::{Failure, Outcome, tp_status};

/// What numbers are, in the byte order of the machine.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum tp_type {
    /// Bytes of anything.
    Bytes = 0,
    /// 8-bit floats, sign first.
    F8 = 1,
    /// IEEE half precision, as `uint16_t`.
    F16 = 2,
    /// bfloat16, as `uint16_t`.
    Bf16 = 3,
    /// `float`.
    F32 = 4,
    /// `double`.
    F64 = 5,
    /// Integers of two bytes.
    I16 = 6,
    /// Integers of four bytes.
    I32 = 7,
    /// Integers of eight bytes.
    I64 = 8,
}

/// In the order of their numbers.
const TYPES: [(tp_type, ValueType); 9] = [
    (tp_type::Bytes, ValueType::Bytes),
    (tp_type::F8, ValueType::F8),
    (tp_type::F16, ValueType::F16),
    (tp_type::Bf16, ValueType::BF16),
    (tp_type::F32, ValueType::F32),
    (tp_type::F64, ValueType::F64),
    (tp_type::I16, ValueType::I16),
    (tp_type::I32, ValueType::I32),
    (tp_type::I64, ValueType::I64),
];

impl tp_type {
    /// What a caller says it is: any number may come.
    pub(crate) fn from_number(number: i32) -> Outcome<Self> {
        let known = usize::try_from(number).ok().and_then(|number| TYPES.get(number));
        known.map(|(kind, _)| *kind).ok_or_else(|| {
            let message = format!("dtype = {number}: allowed are 0 to {}", TYPES.len() - 1);
            Failure::new(tp_status::InvalidArgument, message)
        })
    }

    pub(crate) fn layout(self) -> ValueType {
        TYPES[self as usize].1
    }

    pub(crate) fn of_layout(layout: ValueType) -> Outcome<Self> {
        let known = TYPES.iter().find(|(_, other)| *other == layout);
        known.map(|(kind, _)| *kind).ok_or_else(|| {
            Failure::new(tp_status::Unsupported, format!("numbers of {}", layout.name()))
        })
    }
}

/// The types that are computed with.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Float {
    F32,
    F16,
    Bf16,
}

impl Float {
    pub(crate) fn from_number(number: i32) -> Outcome<Self> {
        match tp_type::from_number(number)? {
            tp_type::F32 => Ok(Self::F32),
            tp_type::F16 => Ok(Self::F16),
            tp_type::Bf16 => Ok(Self::Bf16),
            other => {
                let name = other.layout().name();
                let message = format!("dtype = {name}: allowed are f32, f16 and bf16");
                Err(Failure::new(tp_status::Unsupported, message))
            }
        }
    }

    pub(crate) fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
        }
    }
}

/// Floats that a caller points to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Floats<'a> {
    pub(crate) name: &'a str,
    pub(crate) kind: Float,
    pub(crate) pointer: *const c_void,
    pub(crate) length: usize,
}

impl Floats<'_> {
    pub(crate) fn span(&self) -> Outcome<Span<'_>> {
        match self.kind {
            Float::F32 => span(self.name, self.pointer.cast::<f32>(), self.length),
            _ => span(self.name, self.pointer.cast::<u16>(), self.length),
        }
    }

    /// The numbers as f32: where they lie, or made in `room`.
    ///
    /// # Safety
    /// So many numbers must lie there, and nothing may write to them while the slice is used.
    pub(crate) unsafe fn read<'r>(&self, room: &'r mut Vec<f32>) -> Outcome<&'r [f32]> {
        if let Float::F32 = self.kind {
            // SAFETY: the caller's promise.
            return unsafe { slice(self.name, self.pointer.cast(), self.length) };
        }
        // SAFETY: the caller's promise.
        let bits: &[u16] = unsafe { slice(self.name, self.pointer.cast(), self.length)? };
        room.resize(self.length, 0.0);
        // A piece at a time through the stack: the kernels want the types themselves.
        for (bits, out) in bits.chunks(256).zip(room.chunks_mut(256)) {
            match self.kind {
                Float::Bf16 => {
                    let mut piece = [bf16::ZERO; 256];
                    piece.iter_mut().zip(bits).for_each(|(to, bits)| *to = bf16::from_bits(*bits));
                    kernels::bf16_to_f32(&piece[..bits.len()], out);
                }
                _ => {
                    let mut piece = [f16::ZERO; 256];
                    piece.iter_mut().zip(bits).for_each(|(to, bits)| *to = f16::from_bits(*bits));
                    kernels::f16_to_f32(&piece[..bits.len()], out);
                }
            }
        }
        Ok(room)
    }
}
