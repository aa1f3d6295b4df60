//! Numbers in bf16, made smaller without losing a bit.

use tensorpress::entropy::{ValueType, compress, decompress};
use tensorpress::prelude::*;
use tensorpress::tensor::half::bf16;

fn main() -> Result<()> {
    let bell =
        |i: u32| (0..8).map(|k| (f64::from(i * 8 + k) * 0.754_877_666).fract() - 0.5).sum::<f64>();
    let numbers: Vec<bf16> = (0..100_000).map(|i| bf16::from_f64(bell(i) * 0.02)).collect();

    let frame = compress(&numbers, ValueType::BF16);
    println!("{} bytes as {}", numbers.len() * 2, frame.len());
    assert!(frame.len() < numbers.len() * 3 / 2);

    let again: Vec<bf16> = decompress(&frame)?;
    assert_eq!(again, numbers);
    assert!(decompress::<bf16>(&frame[1..]).is_err(), "damage is an error");
    Ok(())
}
