//! SIMD kernels: the inner loops of compressing and of multiplying by compressed weights.
//!
//! Weights are `[out, in]`, row-major, and products are `Y = X Wᵀ`. Every function is safe and
//! picks its instruction set when the program runs ([`Isa::detect`]); its twin ending in `_on`
//! takes the set as an argument; products take it from the [`Work`] that also holds their buffers. A kernel whose page says *bit-identical* gives the same bytes on
//! every instruction set; all give the same bytes for any number of threads.
//!
//! Sizes that do not fit are programmer errors and panic; no value inside the slices (NaN,
//! infinity) ever does.
#![allow(unsafe_code)]

mod accum;
mod affine;
pub mod attention;
mod bitpack;
mod blocks;
mod convert;
mod cpu;
mod exponential;
mod float;
mod float_type;
mod grid;
mod hadamard;
mod int8;
mod isa;
mod panels;
mod par;
pub mod planes;
pub mod rans;
mod rows;
mod simd;
mod sparse;
mod stats;
mod sweep;
#[cfg(test)]
mod tests;
mod trellis;
mod work;

pub use accum::Accum;
pub use affine::{decode_affine, decode_affine_on, decode_part, decode_part_on};
pub use bitpack::{
    code_at, pack_bits, pack_bits_on, pack_wide, packed_len, unpack_bits, unpack_bits_on,
    unpack_wide,
};
pub use blocks::{
    BlockActivations, BlockRows, BlockType, block_rows_matmul, block_rows_matmul_input,
};
pub use convert::{
    bf16_bytes_to_f32, bf16_bytes_to_f32_on, bf16_to_f32, bf16_to_f32_on, f16_bytes_to_f32,
    f16_bytes_to_f32_on, f16_to_f32, f16_to_f32_on, f32_to_bf16, f32_to_bf16_bytes,
    f32_to_bf16_bytes_on, f32_to_bf16_on, f32_to_f16, f32_to_f16_bytes, f32_to_f16_bytes_on,
    f32_to_f16_on,
};
pub use cpu::cpu_name;
pub use exponential::{
    exp, log_sum_exp, log_sum_exp_on, maximum, maximum_on, softmax, softmax_on, swish, swish_on,
};
pub use float::{
    axpy, axpy_on, dot, dot_f64, dot_f64_on, dot_on, gemm_nt, gemm_nt_on, gemv, gemv_on,
};
pub use float_type::FloatType;
pub use grid::{
    ErrorNorm, grid_error, grid_error_on, grid_errors, grid_errors_on, quantize_affine,
    quantize_affine_on, step_error, step_error_on,
};
pub use hadamard::{
    hadamard_lanes, hadamard_lanes_on, hadamard_rows, hadamard_rows_on, scale_lanes, scale_lanes_on,
};
pub use int8::{dot_i8, dot_i8_on, dot_u8_i8, dot_u8_i8_on};
pub use isa::Isa;
pub use panels::{
    Activations, AffinePanels, CodebookPanels, CodebookRows, InputForm, LevelPanels, LevelRows,
    PanelInput,
};
pub use par::Par;
pub use rows::{AffineRows, affine_matmul};
pub use simd::wide::{LANES, Line};
pub use sparse::{
    Bitmap, BitmapFault, BlockInputs, KeptAffine, StoredRows, Support, block_matmul,
    kept_affine_decode, kept_affine_matmul, picked_matmul, picked_sum, stored_decode,
    stored_matmul,
};
pub use stats::{abs_max, abs_max_on, has_non_finite, has_non_finite_on, minmax, minmax_on};
pub use sweep::{Columns, Swept, sweep, sweep_on};
pub use trellis::{
    TRELLIS_TILE, TRELLIS_UNIT, TrellisRows, trellis_encode, trellis_encode_on, trellis_matmul,
    trellis_part, trellis_part_on, trellis_value, trellis_values,
};
pub use work::{Lines, Work};
