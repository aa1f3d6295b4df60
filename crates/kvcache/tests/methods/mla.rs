use tensorpress_kvcache::mla::{Attention, Rank, Upcycled, upcycle};
use tensorpress_tensor::ErrorKind;
use tensorpress_tensor::ndarray::{Array2, Axis, concatenate, s};

use crate::{noise, softmax};

const HEADS: usize = 4;
const KV: usize = 2;
const DIM: usize = 6;
const IN: usize = 32;

struct Weights {
    q: Array2<f32>,
    k: Array2<f32>,
    v: Array2<f32>,
}

impl Weights {
    fn new() -> Self {
        let made = |rows, seed| noise(rows, IN, seed) / (IN as f32).sqrt();
        Self { q: made(HEADS * DIM, 1), k: made(KV * DIM, 2), v: made(KV * DIM, 3) }
    }

    fn attention(&self) -> Attention<'_> {
        Attention {
            queries: self.q.view(),
            keys: self.k.view(),
            values: self.v.view(),
            heads: HEADS,
            kv_heads: KV,
        }
    }
}

/// Turns the last `rotary` channels by the row's place: some embedding, the same for queries and keys.
fn turn(x: &mut Array2<f64>, rotary: usize) {
    let first = x.ncols() - rotary;
    for (place, mut row) in x.rows_mut().into_iter().enumerate() {
        for i in 0..rotary / 2 {
            let (sin, cos) = (place as f64 * 0.5f64.powi(i as i32)).sin_cos();
            let (a, b) = (row[first + i], row[first + i + rotary / 2]);
            row[first + i] = a * cos - b * sin;
            row[first + i + rotary / 2] = b * cos + a * sin;
        }
    }
}

/// What a head gives, `[tokens, value_dim]`, causal, in f64.
fn head(mut q: Array2<f64>, mut k: Array2<f64>, v: Array2<f64>, rotary: usize) -> Array2<f64> {
    turn(&mut q, rotary);
    turn(&mut k, rotary);
    let mut scores = q.dot(&k.t()) / (DIM as f64).sqrt();
    for ((i, j), s) in scores.indexed_iter_mut() {
        if j > i {
            *s = f64::NEG_INFINITY;
        }
    }
    softmax(scores).dot(&v)
}

/// The outputs of all heads beside each other, before and after.
fn outputs(
    w: &Weights,
    made: &Upcycled,
    x: &Array2<f32>,
    rotary: usize,
) -> (Array2<f64>, Array2<f64>) {
    let wide = |m: &Array2<f32>| m.mapv(f64::from);
    let x = wide(x);
    let of = |m: &Array2<f32>, rows: std::ops::Range<usize>| {
        x.dot(&wide(&m.slice(s![rows, ..]).to_owned()).t())
    };
    let (latent_q, latent) = (x.dot(&wide(&made.down_queries).t()), x.dot(&wide(&made.down).t()));
    let shared = x.dot(&wide(&made.keys_rotary).t());
    let plain = DIM - rotary;
    let up = |z: &Array2<f64>, m: &Array2<f32>, h: usize, width: usize| {
        z.dot(&wide(&m.slice(s![h * width..(h + 1) * width, ..]).to_owned()).t())
    };
    let (mut before, mut after) = (Vec::new(), Vec::new());
    for h in 0..HEADS {
        let group = h * KV / HEADS;
        let rows = |h: usize| h * DIM..(h + 1) * DIM;
        before.push(head(of(&w.q, rows(h)), of(&w.k, rows(group)), of(&w.v, rows(group)), rotary));
        let q = [
            up(&latent_q, &made.up_queries, h, plain),
            up(&latent_q, &made.up_queries_rotary, h, rotary),
        ];
        let k = [up(&latent, &made.up_keys, h, plain), shared.clone()];
        let join = |parts: &[Array2<f64>; 2]| concatenate![Axis(1), parts[0], parts[1]];
        after.push(head(join(&q), join(&k), up(&latent, &made.up_values, h, DIM), rotary));
    }
    let beside = |all: &[Array2<f64>]| {
        concatenate(Axis(1), &all.iter().map(|a| a.view()).collect::<Vec<_>>()).expect("as long")
    };
    (beside(&before), beside(&after))
}

fn error((before, after): &(Array2<f64>, Array2<f64>)) -> f64 {
    let square = |x: &Array2<f64>| x.mapv(|x| x * x).sum();
    (square(&(before - after)) / square(before)).sqrt()
}

/// At full rank latent attention is the attention it was made from; with channels of position where the heads' are alike.
#[test]
fn full_rank_is_the_same_attention() {
    let (mut w, x) = (Weights::new(), noise(20, IN, 9));
    let full = Rank::Fixed(usize::MAX);
    let made = upcycle(&w.attention(), full, full, 0).expect("latent attention");
    let off = error(&outputs(&w, &made, &x, 0));
    assert!(off < 1e-5, "{off}");
    assert_eq!(made.cached(), 2 * KV * DIM);
    // Heads whose channels of position differ lose by their mean; alike they lose nothing.
    let made = upcycle(&w.attention(), full, full, 2).expect("latent attention");
    assert!(error(&outputs(&w, &made, &x, 2)) > 0.01);
    let same = w.k.slice(s![DIM - 2..DIM, ..]).to_owned();
    (0..KV).for_each(|h| w.k.slice_mut(s![h * DIM + DIM - 2..(h + 1) * DIM, ..]).assign(&same));
    let made = upcycle(&w.attention(), full, Rank::Energy(1.0), 2).expect("latent attention");
    let off = error(&outputs(&w, &made, &x, 2));
    assert!(off < 1e-5, "{off}");
    assert_eq!(made.cached(), KV * (2 * DIM - 2) + 2);
}

/// One latent for keys and values is closer than two of half the width, and more rank is closer.
#[test]
fn a_joint_latent_is_closer_than_two() {
    let mut w = Weights::new();
    // Values that say much of what keys say.
    w.v = &w.k * 0.8 + &w.v * 0.3;
    let x = noise(20, IN, 9);
    let full = Rank::Fixed(usize::MAX);
    let joint = |rank| {
        let made = upcycle(&w.attention(), full, Rank::Fixed(rank), 0).expect("latent attention");
        error(&outputs(&w, &made, &x, 0))
    };
    let falls = [2, 6, 12, 24].map(joint);
    assert!(falls.is_sorted_by(|a, b| a > b), "{falls:?}");
    let alone = |x: &Array2<f32>| {
        let made = Attention { keys: x.view(), values: x.view(), ..w.attention() };
        let made = upcycle(&made, full, Rank::Fixed(6), 0).expect("latent attention");
        // Rows of the first head of each group.
        let rows: Vec<usize> = (0..KV).flat_map(|h| h * 2 * DIM..h * 2 * DIM + DIM).collect();
        made.up_values.select(Axis(0), &rows).dot(&made.down)
    };
    let apart = Weights { q: w.q.clone(), k: alone(&w.k), v: alone(&w.v) };
    let of = |w: &Weights| {
        let made = upcycle(&w.attention(), full, full, 0).expect("latent attention");
        outputs(w, &made, &x, 0).1
    };
    let two = error(&(of(&w), of(&apart)));
    assert!(joint(12) < two, "{} and {two}", joint(12));
}

/// Ranks by energy: the fewest that are enough.
#[test]
fn energy_chooses_the_rank() {
    let w = Weights::new();
    let full = Rank::Fixed(usize::MAX);
    let rank = |share| {
        upcycle(&w.attention(), full, Rank::Energy(share), 0)
            .expect("latent attention")
            .down
            .nrows()
    };
    let stacked = concatenate![Axis(0), w.k, w.v].mapv(f64::from);
    let squares =
        tensorpress_tensor::linalg::svd(stacked.view()).expect("values").s.mapv(|s| s * s);
    for share in [0.3, 0.6, 0.9] {
        let r = rank(share);
        let kept = |r: usize| squares.slice(s![..r]).sum() / squares.sum();
        assert!(kept(r) >= share && kept(r - 1) < share, "{r} for {share}");
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let w = Weights::new();
    let full = Rank::Fixed(usize::MAX);
    for rank in [Rank::Fixed(0), Rank::Energy(0.0), Rank::Energy(1.1), Rank::Energy(f64::NAN)] {
        let error = upcycle(&w.attention(), full, rank, 0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{rank:?}");
    }
    assert!(upcycle(&w.attention(), full, full, DIM + 1).is_err());
    let wrong = Attention { kv_heads: 3, ..w.attention() };
    assert_eq!(upcycle(&wrong, full, full, 0).unwrap_err().kind(), ErrorKind::ShapeMismatch);
    let mut nan = Weights::new();
    nan.k[[0, 0]] = f32::NAN;
    assert_eq!(upcycle(&nan.attention(), full, full, 0).unwrap_err().kind(), ErrorKind::Numerical);
}
