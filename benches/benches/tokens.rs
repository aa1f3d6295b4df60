//! Planning a merge of half of 4096 tokens of 768 channels, beside the same algorithm in plain ndarray: the whole
//! similarity matrix at once. In turns on one thread in one run; both must match the same tokens.
//!
//! Then all-MiniLM-L6-v2 on windows of WikiText-2, its tokens reduced in every block: cosine of the embedding to that of all
//! tokens, and how much faster the whole forward pass is, in turns on one thread (where the model and text are found).
//!
//! `--test` runs everything once, small.

use std::hint::black_box;
use std::time::Instant;

use criterion::Criterion;
use tensorpress_model::{Encoder, Reduction, Source, Tokenizer};
use tensorpress_tensor::linalg::{Par, gaussian};
use tensorpress_tensor::ndarray::{Array1, Array2, ArrayView2, Axis, s};
use tensorpress_tensor::testing::data;
use tensorpress_tensor::{Registry, Scratch};
use tensorpress_tokencomp::{
    AttentionTopK, DivPrune, Pooling, RandomKeep, Schedule, ToMe, TokenHints, TokenReduce,
    match_tokens,
};

fn main() {
    let test = std::env::args().any(|arg| arg == "--test");
    let (tokens, channels) = if test { (300, 64) } else { (4096, 768) };
    compare(tokens, channels, if test { 1 } else { 25 });
    encode(if test { 1 } else { 6 });
    let mut criterion = Criterion::default().configure_from_args().sample_size(10);
    let x = states(tokens, channels);
    let hints = TokenHints::default();
    let small = x.slice(s![..tokens / 4, ..]);
    for method in [&ToMe::new() as &dyn TokenReduce, &DivPrune::new(), &Pooling::new()] {
        let name = format!("{}, {} x {channels}, half", method.id(), small.nrows());
        criterion
            .bench_function(&name, |b| b.iter(|| method.plan(small, &hints, small.nrows() / 2)));
    }
    criterion.final_summary();
}

/// Noise around directions that many tokens share, as in the layers of a model.
fn states(tokens: usize, channels: usize) -> Array2<f32> {
    Array2::from_shape_fn((tokens, channels), |(t, c)| {
        let shared = gaussian(1 + t as u64 % 61, c as u64);
        (shared + 0.7 * gaussian(0, (t * channels + c) as u64)) as f32
    })
}

/// The paper's code, line by line: normalise, all similarities, best destination, sort.
fn plain(metric: ArrayView2<'_, f32>, r: usize) -> (Vec<usize>, Vec<usize>) {
    let norms: Array1<f32> = metric.map_axis(Axis(1), |row| row.dot(&row).sqrt());
    let metric = &metric / &norms.insert_axis(Axis(1));
    let (a, b) = (metric.slice(s![..;2, ..]), metric.slice(s![1..;2, ..]));
    let scores = a.dot(&b.t());
    let best: Vec<(usize, f32)> = scores
        .rows()
        .into_iter()
        .map(|row| {
            row.iter().enumerate().fold((0, f32::NEG_INFINITY), |best, (at, score)| {
                if *score > best.1 { (at, *score) } else { best }
            })
        })
        .collect();
    let mut order: Vec<usize> = (0..best.len()).collect();
    order.sort_by(|i, j| best[*j].1.total_cmp(&best[*i].1));
    let merged = &order[..r.min(order.len())];
    (merged.iter().map(|i| 2 * i).collect(), merged.iter().map(|i| 2 * best[*i].0 + 1).collect())
}

/// Windows of a text, class and separator token included.
fn windows(tokenizer: &Tokenizer, text: &str, length: usize, count: usize) -> Vec<Vec<u32>> {
    let ends = tokenizer.encode_template("").expect("a template");
    let ids = tokenizer.encode_plain(text).expect("tokens");
    let window = |ids: &[u32]| [&ends[..1], ids, &ends[1..]].concat();
    ids.chunks_exact(length - 2).take(count).map(window).collect()
}

/// The table of docs/benchmarks/tokens.md: a share of the tokens goes, evenly over the six blocks.
fn encode(count: usize) {
    let (Some(model), Some(text)) = (data::minilm(), data::find("data/text/wikitext2_test.txt"))
    else {
        return;
    };
    let source = Source::open(model, &Registry::default()).expect("a model");
    let encoder = source.encoder().and_then(Encoder::materialise).expect("an encoder");
    let tokenizer = source.tokenizer().expect("a tokenizer");
    let text = std::fs::read_to_string(text).expect("a text");
    let text: String = text.chars().take(100_000).collect();
    let methods: [&dyn TokenReduce; 5] = [
        &ToMe::new(),
        &Pooling::new(),
        &RandomKeep::new(1),
        &AttentionTopK::new(),
        &DivPrune::new(),
    ];
    let mut scratch = Scratch::new(Par::Seq);
    for length in [128, 256, 512] {
        let windows = windows(&tokenizer, &text, length, count);
        for percent in [10, 20, 30, 40, 50] {
            let removed = length * percent / 100;
            let blocks = encoder.blocks().len();
            let schedule = Schedule::Tokens(
                (0..blocks).map(|i| removed * (i + 1) / blocks - removed * i / blocks).collect(),
            );
            let mut line = format!("| {length} | {percent} % |");
            for method in methods {
                let (mut whole, mut less, mut cosine) = (0.0, 0.0, 0.0f64);
                for ids in &windows {
                    let mask = vec![1; ids.len()];
                    let reduction =
                        Reduction { method, schedule: &schedule, protected: &[0, ids.len() - 1] };
                    let (mut slow, mut fast) = (f64::INFINITY, f64::INFINITY);
                    for turn in 0..3 {
                        let (time, all) = timed(|| encoder.embed_ids(ids, &mask, &mut scratch));
                        slow = slow.min(time);
                        let (time, few) =
                            timed(|| encoder.embed_ids_reduced(ids, reduction, &mut scratch));
                        fast = fast.min(time);
                        let (all, few) = (all.expect("an embedding"), few.expect("an embedding"));
                        if turn == 0 {
                            cosine +=
                                all.iter().zip(&few).map(|(a, b)| f64::from(a * b)).sum::<f64>();
                        }
                    }
                    whole += slow;
                    less += fast;
                }
                line += &format!(" {:.3}, {:.2} x |", cosine / windows.len() as f64, whole / less);
            }
            println!("{line}");
        }
    }
}

fn timed<R>(f: impl FnOnce() -> R) -> (f64, R) {
    let start = Instant::now();
    let result = f();
    (start.elapsed().as_secs_f64(), result)
}

fn compare(tokens: usize, channels: usize, turns: usize) {
    let x = states(tokens, channels);
    let r = tokens / 2;
    let (mut slow, mut fast) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..turns {
        let (slow_time, (merged, into)) = timed(|| plain(black_box(x.view()), r));
        let (fast_time, matching) = timed(|| match_tokens(black_box(x.view()), r, &[]));
        let matching = matching.expect("a matching");
        (slow, fast) = (slow.min(slow_time), fast.min(fast_time));
        let pairs = |merged: &[usize], into: &[usize]| {
            let mut pairs: Vec<_> = merged.iter().copied().zip(into.iter().copied()).collect();
            pairs.sort_unstable();
            pairs
        };
        let (ours, theirs) = (pairs(&matching.merged, &matching.into), pairs(&merged, &into));
        let apart = ours.iter().zip(&theirs).filter(|(a, b)| a != b).count();
        assert!(apart * 1000 <= r, "{apart} of {r} pairs differ: more than ties");
    }
    println!(
        "matching {tokens} tokens of {channels} channels: plain ndarray {:.1} ms, ToMe {:.1} ms, {:.2} times as fast",
        slow * 1e3,
        fast * 1e3,
        slow / fast
    );
}
