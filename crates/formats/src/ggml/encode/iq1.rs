//! IQ1_S and IQ1_M: ternary points, each shifted up or down.

use tensorpress_tensor::half::f16;

use super::lattice::{scale_code, weights};
use super::{Block, largest, nearby, put_half};

const SHIFT: f32 = 0.125;
/// What trits stand for, shifted up and down.
const UP: [f32; 3] = [-1.0 + SHIFT, SHIFT, 1.0 + SHIFT];
const DOWN: [f32; 3] = [-1.0 - SHIFT, -SHIFT, 1.0 - SHIFT];

/// Trits of a group: the order of its values, and where in it -1 and 0 end.
struct Split {
    order: Vec<usize>,
    zeros: usize,
    ones: usize,
}

impl Split {
    /// Trits by element; from the other end if the scale is negative.
    fn trits(&self, negative: bool) -> Vec<u8> {
        let mut trits = vec![0; self.order.len()];
        for (place, &i) in self.order.iter().enumerate() {
            let trit = u8::from(place >= self.zeros) + u8::from(place >= self.ones);
            trits[i] = if negative { 2 - trit } else { trit };
        }
        trits
    }
}

fn ascending(x: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..x.len()).collect();
    // Equal values, zeros of both signs among them, stay in order.
    order.sort_by(|&a, &b| (x[a] + 0.0).total_cmp(&(x[b] + 0.0)));
    order
}

/// Points of eight values each for `trits`, and the scale; `values(k)` is what the trits of part k stand for.
fn points(
    x: &[f32],
    weight: &[f32],
    trits: &[u8],
    scale: f32,
    values: impl Fn(usize) -> [f32; 3],
) -> (Vec<u16>, f32) {
    let mut all = true;
    let mut numbers = Vec::new();
    for (k, trits) in trits.chunks(8).enumerate() {
        let (x, weight, values) = (&x[8 * k..], &weight[8 * k..], values(k));
        let (number, exact) = nearby::IQ1.find(trits, |level| {
            let mut sum = 0.0;
            for i in 0..8 {
                let difference = scale * values[usize::from(level(i))] - x[i];
                sum += weight[i] * difference * difference;
            }
            sum
        });
        all &= exact;
        numbers.push(number);
    }
    if all {
        return (numbers, scale);
    }
    let (mut qx, mut qq) = (0.0, 0.0);
    for (i, (&x, &w)) in x.iter().zip(weight).enumerate() {
        let q = values(i / 8)[usize::from(nearby::IQ1.level(numbers[i / 8], i % 8))];
        qx += w * q * x;
        qq += w * q * q;
    }
    (numbers, if qx > 0.0 && qq > 0.0 { qx / qq } else { scale })
}

pub(super) fn iq1_s(x: Block<'_, 256>, b: &mut [u8; 50]) {
    let weights = weights(x, 2.0, |_, x| x * x);
    let mut scales = [0.0; 8];
    let mut high = [0_u16; 8];
    let mut down = [false; 8];
    for g in 0..8 {
        let (x, weight) = (&x.x[32 * g..][..32], &weights[32 * g..][..32]);
        let max = largest(x).abs();
        if max < 1e-12 {
            continue;
        }
        let (split, scale, up) = split_32(x, weight, max);
        let trits = split.trits(scale < 0.0);
        down[g] = up == (scale < 0.0);
        let values = if down[g] { DOWN } else { UP };
        let (numbers, scale) = points(x, weight, &trits, scale.abs(), |_| values);
        scales[g] = scale;
        for (k, number) in numbers.iter().enumerate() {
            b[2 + 4 * g + k] = *number as u8;
            high[g] |= number >> 8 << (3 * k);
        }
    }
    let max = scales.iter().fold(0.0, |max, &s| if s > max { s } else { max });
    if max > 0.0 {
        let d = max / 15.0;
        put_half(b, 0, d * 1.125);
        for g in 0..8 {
            high[g] |=
                u16::from(scale_code(1.0 / d, scales[g], 7)) << 12 | u16::from(down[g]) << 15;
        }
    }
    for (b, h) in b[34..].as_chunks_mut().0.iter_mut().zip(high) {
        *b = h.to_le_bytes();
    }
}

/// The best split of 32 values, its scale, and whether it is shifted up.
fn split_32(x: &[f32], weight: &[f32], scale: f32) -> (Split, f32, bool) {
    let order = ascending(x);
    let (mut sum_x, mut sum_w) = (vec![0.0], vec![0.0]);
    for (j, &i) in order.iter().enumerate() {
        sum_x.push(sum_x[j] + weight[i] * x[i]);
        sum_w.push(sum_w[j] + weight[i]);
    }
    let n = order.len();
    let (mut best, mut found) = (-f32::MAX, (0, 0, scale, true));
    for zeros in 0..=n {
        for ones in zeros..=n {
            let part = |s: &[f32]| [s[zeros] - s[0], s[ones] - s[zeros], s[n] - s[ones]];
            let (px, pw) = (part(&sum_x), part(&sum_w));
            for (v, up) in [(UP, true), (DOWN, false)] {
                let qx = px[0] * v[0] + px[1] * v[1] + px[2] * v[2];
                let qq = pw[0] * v[0] * v[0] + pw[1] * v[1] * v[1] + pw[2] * v[2] * v[2];
                if qq > 0.0 && qx * qx > best * qq {
                    found = (zeros, ones, qx / qq, up);
                    best = found.2 * qx;
                }
            }
        }
    }
    let (zeros, ones, scale, up) = found;
    (Split { order, zeros, ones }, scale, up)
}

/// Both octets of 16: bit 0 the second shifted down, bit 1 the first.
fn shifted(pair: u8, octet: usize) -> [f32; 3] {
    if pair >> (1 - octet) & 1 == 1 { DOWN } else { UP }
}

pub(super) fn iq1_m(x: Block<'_, 256>, b: &mut [u8; 56]) {
    let weights = weights(x, 2.0, |_, x| x * x);
    let mut scales = [0.0; 16];
    let mut numbers = [[0; 2]; 16];
    let mut pairs = [0; 16];
    for g in 0..16 {
        let (x, weight) = (&x.x[16 * g..][..16], &weights[16 * g..][..16]);
        let max = largest(x).abs();
        if max < 1e-7 {
            continue;
        }
        let (split, scale, pair) = split_16(x, weight, max);
        let trits = split.trits(scale < 0.0);
        pairs[g] = if scale < 0.0 { 3 - pair } else { pair };
        let (found, scale) = points(x, weight, &trits, scale.abs(), |k| shifted(pairs[g], k));
        scales[g] = scale;
        numbers[g] = [found[0], found[1]];
        b[2 * g] = found[0] as u8;
        b[2 * g + 1] = found[1] as u8;
        b[32 + g] = (found[0] >> 8) as u8 | ((found[1] >> 8) as u8) << 4;
    }
    let max = scales.iter().fold(0.0, |max, &s| if s > max { s } else { max });
    if max == 0.0 {
        return;
    }
    let mut d = max / 15.0;
    let inverse = 1.0 / d;
    let mut words = [0_u16; 4];
    let (mut qx, mut qq) = (0.0, 0.0);
    for g in 0..16 {
        let l = scale_code(inverse, scales[g], 7);
        words[g / 4] |= u16::from(l) << (3 * (g % 4));
        b[32 + g] |= (pairs[g] >> 1) << 3 | (pairs[g] & 1) << 7;
        for i in 0..16 {
            let (x, w) = (x.x[16 * g + i], weights[16 * g + i]);
            let trit = nearby::IQ1.level(numbers[g][i / 8], i % 8);
            let q = shifted(pairs[g], i / 8)[usize::from(trit)] * f32::from(2 * l + 1);
            qx += w * q * x;
            qq += w * q * q;
        }
    }
    if qq > 0.0 {
        d = qx / qq;
    }
    let d = f16::from_f32(d * 1.1125).to_bits();
    for (i, word) in words.iter_mut().enumerate() {
        *word |= (d >> (4 * i) & 15) << 12;
        b[48 + 2 * i..][..2].copy_from_slice(&word.to_le_bytes());
    }
}

/// The best split of 16 values, its scale, and which octets are shifted down.
fn split_16(x: &[f32], weight: &[f32], scale: f32) -> (Split, f32, u8) {
    let order = ascending(x);
    let n = order.len();
    let (mut best, mut found) = (-f32::MAX, (0, 0, scale, 0));
    for zeros in 0..=n {
        for ones in zeros..=n {
            // In this order: of pairs that fit alike the first is taken.
            for pair in [0, 1, 3, 2] {
                let (mut qx, mut qq) = (0.0, 0.0);
                for (place, &i) in order.iter().enumerate() {
                    let trit = usize::from(place >= zeros) + usize::from(place >= ones);
                    let q = shifted(pair, i / 8)[trit];
                    qx += weight[i] * q * x[i];
                    qq += weight[i] * q * q;
                }
                if qq > 0.0 && qx * qx > best * qq {
                    found = (zeros, ones, qx / qq, pair);
                    best = found.2 * qx;
                }
            }
        }
    }
    let (zeros, ones, scale, pair) = found;
    (Split { order, zeros, ones }, scale, pair)
}
