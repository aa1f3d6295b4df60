//! Bytes of values to byte planes and back.

/// Splits values of `planes.len()` bytes each into planes: `planes[k][i]` is byte k of value i. With `rotate`, each
/// value's sign moves from its top bit to its lowest first, so that the exponent starts at a byte's edge.
pub fn split_planes(data: &[u8], rotate: bool, planes: &mut [Vec<u8>]) {
    let count = data.len() / planes.len();
    for plane in planes.iter_mut() {
        plane.clear();
        plane.resize(count, 0);
    }
    match planes {
        [a] => {
            for (value, a) in data.iter().zip(a) {
                *a = if rotate { value.rotate_left(1) } else { *value };
            }
        }
        [a, b] => {
            for ((value, a), b) in data.as_chunks::<2>().0.iter().zip(a).zip(b) {
                let value = u16::from_le_bytes(*value).rotate_left(u32::from(rotate));
                [*a, *b] = value.to_le_bytes();
            }
        }
        [a, b, c, d] => {
            let values = data.as_chunks::<4>().0.iter();
            for ((((value, a), b), c), d) in values.zip(a).zip(b).zip(c).zip(d) {
                let value = u32::from_le_bytes(*value).rotate_left(u32::from(rotate));
                [*a, *b, *c, *d] = value.to_le_bytes();
            }
        }
        planes => {
            for (i, value) in data.as_chunks::<8>().0.iter().enumerate() {
                let value = u64::from_le_bytes(*value).rotate_left(u32::from(rotate)).to_le_bytes();
                planes.iter_mut().zip(value).for_each(|(plane, byte)| plane[i] = byte);
            }
        }
    }
}

/// Undoes [`split_planes`]; `out` is as long as all planes.
pub fn join_planes(planes: &[&[u8]], rotate: bool, out: &mut [u8]) {
    match planes {
        [a] => {
            for (out, a) in out.iter_mut().zip(*a) {
                *out = if rotate { a.rotate_right(1) } else { *a };
            }
        }
        [a, b] => {
            for ((out, a), b) in out.as_chunks_mut::<2>().0.iter_mut().zip(*a).zip(*b) {
                *out = u16::from_le_bytes([*a, *b]).rotate_right(u32::from(rotate)).to_le_bytes();
            }
        }
        [a, b, c, d] => {
            let out = out.as_chunks_mut::<4>().0.iter_mut();
            for ((((out, a), b), c), d) in out.zip(*a).zip(*b).zip(*c).zip(*d) {
                let value = u32::from_le_bytes([*a, *b, *c, *d]);
                *out = value.rotate_right(u32::from(rotate)).to_le_bytes();
            }
        }
        planes => {
            for (i, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                let value = u64::from_le_bytes(std::array::from_fn(|k| planes[k][i]));
                *out = value.rotate_right(u32::from(rotate)).to_le_bytes();
            }
        }
    }
}
