use super::grid::Plane;

/// The largest number that an encoder takes: so far below f32's that no sum of a head's channels overflows.
pub(super) const LARGEST_INPUT: f32 = (1u128 << 96) as f32;

/// What no scale or minimum exceeds: the sum of 2^16 of the largest inputs, over the root of 2^16, and as much as rounds.
pub(super) const LARGEST: f32 = (1u128 << 105) as f32;

/// Buffers of encoding and decoding: one per thread. They grow to one token's keys or values, and are then used again.
#[derive(Debug, Clone, Default)]
pub struct PageScratch {
    x: Vec<f32>,
    codes: Vec<u8>,
    scales: Vec<f32>,
    mins: Vec<f32>,
}

/// Room for one token of a plane; contents unspecified.
pub(super) struct Buffers<'a> {
    pub(super) x: &'a mut [f32],
    pub(super) codes: &'a mut [u8],
    pub(super) scales: &'a mut [f32],
    pub(super) mins: &'a mut [f32],
}

impl PageScratch {
    pub(super) fn room(&mut self, plane: &Plane) -> Buffers<'_> {
        let (width, grids) = (plane.width(), plane.heads * plane.groups());
        Buffers {
            x: first(&mut self.x, width),
            codes: first(&mut self.codes, width),
            scales: first(&mut self.scales, grids),
            mins: first(&mut self.mins, grids),
        }
    }
}

fn first<T: Copy + Default>(buffer: &mut Vec<T>, len: usize) -> &mut [T] {
    if buffer.len() < len {
        buffer.resize(len, T::default());
    }
    &mut buffer[..len]
}
