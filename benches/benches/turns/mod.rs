//! Contenders that take turns in one run, and the plain read they are held against.

#![allow(dead_code)] // each bench uses a part of it

use std::time::Instant;

/// Reads all of it, asking for memory `AHEAD` bytes before.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn read_avx512<const AHEAD: usize>(bytes: &[u8]) -> u64 {
    use std::arch::x86_64::*;
    let mut sums = [_mm512_setzero_si512(); 8];
    for block in bytes.as_chunks::<512>().0 {
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: the eight reads lie within the block; a prefetch may go anywhere.
            unsafe {
                let from = block.as_ptr().add(64 * i);
                if AHEAD > 0 {
                    _mm_prefetch::<_MM_HINT_NTA>(from.wrapping_add(AHEAD).cast());
                }
                *sum = _mm512_xor_si512(*sum, _mm512_loadu_si512(from.cast()));
            }
        }
    }
    let sum = sums.into_iter().fold(_mm512_setzero_si512(), |a, b| _mm512_xor_si512(a, b));
    _mm512_reduce_add_epi64(sum) as u64
}

pub fn read<const AHEAD: usize>(bytes: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        // SAFETY: just asked for.
        return unsafe { read_avx512::<AHEAD>(bytes) };
    }
    let words = bytes.as_chunks::<8>().0;
    words.iter().fold(0, |sum, word| sum ^ u64::from_le_bytes(*word))
}

/// One line of a table: what it does, the bytes it reads, its seconds by round.
pub struct Contender<'a> {
    pub name: String,
    pub bytes: usize,
    run: Box<dyn FnMut() + 'a>,
    seconds: Vec<f64>,
}

impl<'a> Contender<'a> {
    pub fn new(name: &str, bytes: usize, run: impl FnMut() + 'a) -> Self {
        Self { name: name.into(), bytes, run: Box::new(run), seconds: Vec::new() }
    }

    pub fn best(&self) -> f64 {
        self.seconds.iter().copied().fold(f64::INFINITY, f64::min)
    }

    pub fn median(&self) -> f64 {
        let mut seconds = self.seconds.clone();
        seconds.sort_by(f64::total_cmp);
        seconds[seconds.len() / 2]
    }
}

/// Runs every contender once a round, after a round that only warms up.
pub fn take_turns(contenders: &mut [Contender<'_>], rounds: usize) {
    for round in 0..=rounds {
        for contender in &mut *contenders {
            let start = Instant::now();
            (contender.run)();
            let seconds = start.elapsed().as_secs_f64();
            if round > 0 {
                contender.seconds.push(seconds);
            }
        }
    }
}
