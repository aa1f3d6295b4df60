//! DIVISION and DynaQuant: slow references, laws of randomness, bad input, figures.

use tensorpress_quant::activation::{Division, DynaQuant, choose_bits};
use tensorpress_tensor::ErrorKind;
use tensorpress_tensor::linalg::gaussian;
use tensorpress_tensor::ndarray::{Array4, s};
use tensorpress_tensor::testing::data;
use tensorpress_tensor::testing::golden::Layer;

/// Smooth maps with a little noise.
fn maps(shape: (usize, usize, usize, usize), noise: f64, seed: u64) -> Array4<f32> {
    let mut i = 0;
    Array4::from_shape_fn(shape, |(b, c, y, x)| {
        i += 1;
        let wave = |k: u64| {
            let of = |j: u64| gaussian(seed + b as u64, 100 * c as u64 + 4 * k + j);
            of(0) * (0.1 * of(1) * y as f64 + 0.1 * of(2) * x as f64 + of(3)).cos()
        };
        ((0..4).map(wave).sum::<f64>() + noise * gaussian(seed + 99, i)) as f32
    })
}

fn relative(a: &Array4<f32>, b: &Array4<f32>) -> f64 {
    let off: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    (off / b.iter().map(|b| f64::from(*b).powi(2)).sum::<f64>()).sqrt()
}

#[test]
fn what_is_kept_is_near_and_without_bias() {
    let maps = maps((2, 3, 13, 18), 0.2, 1);
    for (block, bits, group) in [(8, 2, 64), (4, 1, 50), (1, 2, 100), (40, 8, 7)] {
        let division = Division::default().with_block(block).with_bits(bits, group);
        let runs = 400;
        let mut mean = maps.mapv(|_| 0f64);
        let mut steps = Vec::new();
        for seed in 0..runs {
            let kept = division.compress(maps.view(), seed).unwrap();
            steps = kept.steps();
            let back = kept.decompress().unwrap();
            for (i, (back, v)) in back.iter().zip(&maps).enumerate() {
                let step = steps[i / group];
                assert!((back - v).abs() <= 1.001 * step + 1e-5, "{back} for {v}, step {step}");
            }
            mean += &back.mapv(|v| f64::from(v) / runs as f64);
        }
        // A mean of 400 uniform choices among neighbours is off by step / 40 and less: six of these at most.
        for (i, (mean, v)) in mean.iter().zip(&maps).enumerate() {
            let bound = f64::from(steps[i / group]) * 6.0 / 40.0 + 1e-5;
            assert!((mean - f64::from(*v)).abs() < bound, "{mean}, {v}");
        }
    }
}

#[test]
fn low_frequencies_are_means_of_blocks() {
    let maps = maps((1, 2, 10, 11), 0.1, 2);
    // With one level, the lowest of its group, for what is left: the means stand out.
    let kept = Division::default().with_block(4).with_bits(8, 1).compress(maps.view(), 0).unwrap();
    // Groups of one number are exact up to bf16.
    assert!(relative(&kept.decompress().unwrap(), &maps) < 2e-3);
    assert_eq!(kept.bytes(), 2 * 2 * 3 * 3 + 4 * 220 + 220);
    for c in 0..2 {
        for (y, x) in [(0, 0), (2, 1), (1, 2)] {
            let part = maps.slice(s![0, c, 4 * y..10.min(4 * y + 4), 4 * x..11.min(4 * x + 4)]);
            let mean = part.iter().map(|v| f64::from(*v)).sum::<f64>() / part.len() as f64;
            // Constant blocks of these means lose nothing but the rounding of the means.
            let flat = Array4::from_elem((1, 1, 4, 4), mean as f32);
            let two = Division::default().with_block(4).with_bits(1, 16);
            let back = two.compress(flat.view(), 0).unwrap().decompress().unwrap();
            assert!(relative(&back, &flat) < 1e-4);
        }
    }
}

#[test]
fn figures() {
    let smooth = maps((4, 16, 56, 56), 0.05, 3);
    let two = Division::default();
    let plain = two.with_block(1 << 16);
    for (name, maps) in [("smooth maps", &smooth), ("noise", &maps((1, 4, 56, 56), 3.0, 4))] {
        let run = |division: Division| {
            let kept = division.compress(maps.view(), 5).unwrap();
            let ratio = 4.0 * maps.len() as f64 / kept.bytes() as f64;
            (relative(&kept.decompress().unwrap(), maps), ratio)
        };
        let (both, one) = (run(two), run(plain));
        println!(
            "{name}: error {:.4} at 1/{:.1} of f32, without blocks {:.4} at 1/{:.1}",
            both.0, both.1, one.0, one.1
        );
        if name == "smooth maps" {
            assert!(both.0 < 0.6 * one.0 && both.1 > 10.0);
        }
    }
    let Some(folder) = data::find("golden/weights") else { return };
    let x = Layer::read(&folder, "l2_ffn_up").x;
    let (tokens, channels) = x.dim();
    let states = x.into_shape_with_order((1, 1, tokens, channels)).unwrap();
    let run = |division: Division| {
        relative(&division.compress(states.view(), 6).unwrap().decompress().unwrap(), &states)
    };
    println!("states of MiniLM: error {:.4}, without blocks {:.4}", run(two), run(plain));
}

#[test]
fn compression_is_determined_and_refuses_what_it_cannot_keep() {
    let maps = maps((1, 2, 9, 9), 0.1, 7);
    let two = Division::default();
    let run = |seed| two.compress(maps.view(), seed).unwrap().decompress().unwrap();
    assert!(run(1) == run(1) && run(1) != run(2));
    let kind = |d: Division| d.compress(maps.view(), 0).unwrap_err().kind();
    for bad in [two.with_block(0), two.with_bits(0, 4), two.with_bits(9, 4), two.with_bits(2, 0)] {
        assert_eq!(kind(bad), ErrorKind::InvalidArgument);
    }
    for bad in [f32::NAN, f32::INFINITY, 3e38] {
        let mut maps = maps.clone();
        maps[[0, 1, 2, 3]] = bad;
        let error = two.compress(maps.view(), 0).unwrap_err();
        assert!(error.kind() == ErrorKind::Numerical && error.to_string().contains("(0, 1, 2, 3)"));
    }
    for shape in [(0, 3, 4, 4), (1, 1, 0, 5), (1, 1, 1, 1)] {
        let zeros = Array4::zeros(shape);
        let back = two.compress(zeros.view(), 0).unwrap().decompress().unwrap();
        assert_eq!(back, zeros);
    }
    for value in [1e37, -1e37, 1e-40, -3.7] {
        let flat = Array4::from_elem((1, 1, 5, 5), value);
        let back = two.compress(flat.view(), 0).unwrap().decompress().unwrap();
        let near = |v: &f32| (v - value).abs() <= 0.01 * value.abs() + 2e-40;
        assert!(back.iter().all(near), "{value}: {back:?}");
    }
}

#[test]
fn grids_follow_the_statistics() {
    let x: Vec<f32> = (0..400).map(|i| gaussian(8, i) as f32 * 3.0 + 5.0).collect();
    for spread in [1.0f32, 2.5, 9.0] {
        for bits in [1, 4, 8, 16] {
            let grid = DynaQuant::default().with_spread(spread).grid(&x, bits).unwrap();
            let n = x.len() as f64;
            let mean = x.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
            let square = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / n;
            let reach = f64::from(spread) * (square - mean * mean).sqrt();
            let least = x.iter().copied().min_by(f32::total_cmp).unwrap();
            let largest = x.iter().copied().max_by(f32::total_cmp).unwrap();
            let low = (mean - reach).max(least.into());
            let high = (mean + reach).min(largest.into());
            let levels = (1u32 << bits) - 1;
            assert!((f64::from(grid.offset) - low).abs() < 1e-5);
            let step = (high - low) / f64::from(levels);
            assert!((f64::from(grid.scale) / step - 1.0).abs() < 1e-5);
            for x in &x {
                let all = 0..=grid.most;
                let near = all.min_by(|a, b| {
                    (grid.level(*a) - x).abs().total_cmp(&(grid.level(*b) - x).abs())
                });
                let (near, got) = (grid.level(near.unwrap()), grid.level(grid.code(*x)));
                assert!((near - x).abs() >= (got - x).abs() - 1e-4 * grid.scale - 2e-6);
                if bits == 16 {
                    break;
                }
            }
        }
    }
}

/// Each token on its own grid, and all on one.
#[test]
fn grids_of_their_own_lose_less() {
    let Some(folder) = data::find("golden/weights") else { return };
    for name in ["l2_query", "l2_ffn_up", "l2_ffn_down"] {
        let x = Layer::read(&folder, name).x;
        let all: Vec<f32> = x.iter().copied().collect();
        let power: f64 = all.iter().map(|x| f64::from(*x).powi(2)).sum();
        for bits in [4, 6] {
            let dyna = DynaQuant::default().with_spread(12.0);
            let error = |parts: &[&[f32]]| {
                let of = |part: &&[f32]| {
                    let grid = dyna.grid(part, bits).unwrap();
                    let off = |x: &f32| f64::from(grid.level(grid.code(*x)) - x).powi(2);
                    part.iter().map(off).sum::<f64>()
                };
                (parts.iter().map(of).sum::<f64>() / power).sqrt()
            };
            let tokens: Vec<&[f32]> = all.chunks(x.ncols()).collect();
            let (own, one) = (error(&tokens), error(&[&all]));
            println!("{name}, {bits} bits: error {own:.4} by token, {one:.4} on one grid");
            assert!(own < one);
        }
    }
}

/// Of the surrogate offset + scale (place + a constant), whose derivative the estimator is; the factor by its definition.
#[test]
fn gradients_are_those_of_the_estimator() {
    let x: Vec<f32> = (0..60).map(|i| gaussian(9, i) as f32).collect();
    let up: Vec<f32> = (0..60).map(|i| gaussian(10, i) as f32).collect();
    let dyna = DynaQuant::default().with_spread(1.5).with_strength(0.7);
    let grid = dyna.grid(&x, 3).unwrap();
    let got = dyna.gradients(&x, &grid, &up).unwrap();
    let value = |scale: f64, offset: f64| -> f64 {
        let of = |(x, up): (&f32, &f32)| {
            let at = (f64::from(*x) - f64::from(grid.offset)) / f64::from(grid.scale);
            let code = f64::from(grid.code(*x));
            let inside = (0.0..=7.0).contains(&at);
            // Rounding is moving by a constant; at the ends the code is the constant.
            let place = (f64::from(*x) - offset) / scale;
            let code = if inside { place + (code - at) } else { code };
            f64::from(*up) * (offset + scale * code)
        };
        x.iter().zip(&up).map(of).sum()
    };
    let (scale, offset, h) = (f64::from(grid.scale), f64::from(grid.offset), 1e-5);
    let by_scale = (value(scale + h, offset) - value(scale - h, offset)) / (2.0 * h);
    let by_offset = (value(scale, offset + h) - value(scale, offset - h)) / (2.0 * h);
    assert!((by_scale - f64::from(got.scale)).abs() < 1e-3 * by_scale.abs().max(1.0));
    assert!((by_offset - f64::from(got.offset)).abs() < 1e-3 * by_offset.abs().max(1.0));
    for ((x, up), got) in x.iter().zip(&up).zip(&got.input) {
        let at = (x - grid.offset) / grid.scale;
        let near = (0..8).map(|code| (at - code as f32).abs()).fold(f32::INFINITY, f32::min);
        let expected = if (0.0..=7.0).contains(&at) { up * (1.7 - 2.8 * near) } else { 0.0 };
        assert!((got - expected).abs() < 1e-4, "{got}, {expected}");
    }
    // On average over a step the factor is 1.
    let line: Vec<f32> = (0..=8000).map(|i| i as f32 / 8000.0).collect();
    let grid = dyna.with_spread(10.0).grid(&line, 2).unwrap();
    let ones = vec![1.0; line.len()];
    let input = dyna.gradients(&line, &grid, &ones).unwrap().input;
    let mean = input.iter().map(|v| f64::from(*v)).sum::<f64>() / line.len() as f64;
    assert!((mean - 1.0).abs() < 1e-3, "{mean}");
}

#[test]
fn dynamic_grids_refuse_what_they_cannot_hold() {
    let dyna = DynaQuant::default();
    for flat in [vec![], vec![0.0; 5], vec![-3.5; 4]] {
        let grid = dyna.grid(&flat, 8).unwrap();
        assert!(flat.iter().all(|x| grid.level(grid.code(*x)) == *x));
        let gradients = dyna.gradients(&flat, &grid, &vec![1.0; flat.len()]).unwrap();
        assert!(gradients.input.iter().all(|g| *g == 0.0) && gradients.offset == flat.len() as f32);
    }
    let kind = |made: tensorpress_tensor::Result<_>| made.unwrap_err().kind();
    let one: [f32; 1] = [1.0];
    assert_eq!(kind(dyna.grid(&one, 0)), ErrorKind::InvalidArgument);
    assert_eq!(kind(dyna.grid(&one, 17)), ErrorKind::InvalidArgument);
    assert_eq!(kind(dyna.with_spread(0.0).grid(&one, 8)), ErrorKind::InvalidArgument);
    assert_eq!(kind(dyna.with_strength(1.5).grid(&one, 8)), ErrorKind::InvalidArgument);
    assert_eq!(kind(dyna.grid(&[1.0, f32::NAN], 8)), ErrorKind::Numerical);
    let grid = dyna.grid(&one, 8).unwrap();
    let short = dyna.gradients(&one, &grid, &[]).unwrap_err();
    assert_eq!(short.kind(), ErrorKind::ShapeMismatch);
    let huge = dyna.grid(&[-3e38, 3e38], 8).unwrap();
    assert!(huge.scale.is_finite() && huge.level(huge.code(3e38)).is_finite());
    assert_eq!(huge.code(f32::NAN), 0);
}

#[test]
fn widths_follow_the_scores() {
    let chosen = choose_bits(&[vec![0.0, 2.0, 1.0], vec![1.0, 1.0, -5.0]], &[4, 6, 8]).unwrap();
    assert_eq!(chosen.iter().map(|c| c.0).collect::<Vec<_>>(), [6, 4]);
    let e = |x: f64| x.exp();
    let mean = (4.0 + 6.0 * e(2.0) + 8.0 * e(1.0)) / (1.0 + e(2.0) + e(1.0));
    assert!((f64::from(chosen[0].1) - mean).abs() < 1e-5);
    let kind = |scores: &[Vec<f32>], widths: &[u8]| choose_bits(scores, widths).unwrap_err().kind();
    assert_eq!(kind(&[vec![]], &[]), ErrorKind::InvalidArgument);
    assert_eq!(kind(&[vec![1.0]], &[4, 8]), ErrorKind::ShapeMismatch);
    assert_eq!(kind(&[vec![1.0, f32::NAN]], &[4, 8]), ErrorKind::Numerical);
    assert!(choose_bits(&[], &[4]).unwrap().is_empty());
}
