//! Attention of one decoded token over 32k tokens of 8 heads x 128 channels, in every form a cache can have: on one thread
//! and on all, taking turns in one run, with the read bandwidth of as many bytes beside it. `--test` runs everything once, on few
//! tokens. Every answer is checked against softmax over the decoded store before anything is timed. Then what policies and
//! appending add, prompts, and what a long cache takes of memory.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::Criterion;
use tensorpress_kvcache::policy::{h2o, knorm, snapkv};
use tensorpress_kvcache::{
    Bitmap, Budget, Cache, Causal, Int, KvShape, KvStore, Layer, LayerAt, StoreForm,
};
use tensorpress_tensor::kernels::Isa;
use tensorpress_tensor::linalg::{Par, SplitMix};
use tensorpress_tensor::ndarray::{Array1, Array3, s};
use tensorpress_tensor::{DType, Scratch};

const KV_HEADS: usize = 8;
const DIM: usize = 128;

fn main() {
    let test = std::env::args().any(|arg| arg == "--test");
    println!("instruction sets: {:?}, chosen: {}", Isa::available(), Isa::detect());
    let tokens = if test { 1024 } else { 32 * 1024 };
    for heads in [8, 32] {
        forms(heads, tokens, test);
    }
    bookkeeping(tokens, test);
    appending(if test { 512 } else { 4096 }, test);
    prefill(if test { 128 } else { 4096 }, test);
    long(if test { 8 * 1024 } else { 1024 * 1024 }, test);
}

fn noise(tokens: usize, heads: usize, seed: u64) -> Array3<f32> {
    let mut random = SplitMix::new(seed);
    Array3::from_shape_fn((tokens, heads, DIM), |_| random.next_f64() as f32 - 0.5)
}

fn layer(heads: usize, tokens: usize, form: StoreForm) -> Layer {
    let shape = KvShape::new(heads, KV_HEADS, DIM).expect("a shape");
    let mut layer = Layer::new(shape, form).expect("a form");
    for start in (0..tokens).step_by(1024) {
        let [k, v] = [1, 2].map(|seed| noise(1024, KV_HEADS, start as u64 + seed));
        layer.append(k.view(), v.view()).expect("appends");
    }
    layer
}

fn attend(layer: &Layer, q: &Array3<f32>, out: &mut Array3<f32>, scratch: &mut Scratch) {
    let causal = Causal::from(layer.len() - 1);
    layer.attend(q.view(), causal, out.view_mut(), scratch, None).expect("attends");
}

/// The largest error against softmax over the decoded store, relative to the largest output.
fn error(layer: &Layer, q: &Array3<f32>, out: &Array3<f32>) -> f32 {
    let group = layer.shape().group();
    let (mut worst, mut largest) = (0.0f32, 0.0f32);
    for h in 0..KV_HEADS {
        let (k, v) = layer.decode(h);
        for head in h * group..(h + 1) * group {
            let scores: Array1<f32> = k.dot(&q.slice(s![0, head, ..])) / (DIM as f32).sqrt();
            let max = scores.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b));
            let weights: Array1<f32> = scores.mapv(|s| (s - max).exp());
            let exact = v.t().dot(&weights) / weights.sum();
            for (a, b) in out.slice(s![0, head, ..]).iter().zip(&exact) {
                worst = worst.max((a - b).abs());
                largest = largest.max(b.abs());
            }
        }
    }
    worst / largest
}

/// Seconds of a plain read of so many bytes: the shortest of a few turns.
fn read_seconds(bytes: usize, turns: usize) -> f64 {
    let buffer = vec![1u64; bytes / 8];
    let mut best = f64::INFINITY;
    for _ in 0..turns {
        let start = Instant::now();
        let mut sums = [0u64; 32];
        for chunk in black_box(&buffer).as_chunks::<32>().0 {
            for i in 0..32 {
                sums[i] = sums[i].wrapping_add(chunk[i]);
            }
        }
        black_box(sums);
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

fn forms(heads: usize, tokens: usize, test: bool) {
    let turns = if test { 1 } else { 25 };
    let int = |bits, group: usize| {
        StoreForm::Int(Int::new(bits).with_group(group).with_window(group.max(32)))
    };
    let forms = [
        ("f32", StoreForm::Float(DType::F32)),
        ("f16", StoreForm::Float(DType::F16)),
        ("int8 g32", int(8, 32)),
        ("int4 g32", int(4, 32)),
        ("int4 g64", int(4, 64)),
        ("int4 g128", int(4, 128)),
        ("int2 g32", int(2, 32)),
        ("mustafar 50%", StoreForm::Bitmap(Bitmap::new(0.5))),
        ("mustafar 70%", StoreForm::Bitmap(Bitmap::new(0.7))),
        ("... of bf16", StoreForm::Bitmap(Bitmap::new(0.7).with_dtype(DType::BF16))),
    ];
    let layers: Vec<Layer> =
        forms.iter().map(|(_, form)| layer(heads, tokens, form.clone())).collect();
    let q = noise(1, heads, 3).mapv(|q| 8.0 * q);
    let mut out = Array3::zeros(q.raw_dim());
    let mut scratch = Scratch::default();
    let mut all = Scratch::new(Par::Rayon);
    let mut best = vec![[Duration::MAX; 2]; layers.len()];
    let errors: Vec<f32> = layers
        .iter()
        .map(|layer| {
            attend(layer, &q, &mut out, &mut scratch);
            error(layer, &q, &out)
        })
        .collect();
    for _ in 0..turns {
        for (layer, best) in layers.iter().zip(&mut best) {
            for (scratch, best) in [&mut scratch, &mut all].into_iter().zip(best) {
                let start = Instant::now();
                attend(layer, &q, &mut out, scratch);
                black_box(&out);
                *best = start.elapsed().min(*best);
            }
        }
    }
    println!("\n{heads} query heads, {KV_HEADS} heads of keys x {DIM}, {tokens} tokens, one query");
    println!(
        "form           bits    ms      GB/s   of read  x f32  x f16  error    all threads: ms  x f32  x f16"
    );
    for (i, (name, _)) in forms.iter().enumerate() {
        let (bytes, [seconds, shared]) =
            (layers[i].bytes() as usize, best[i].map(|b| b.as_secs_f64()));
        println!(
            "{name:13} {:5.2} {:7.3} {:8.1} {:8.2} {:6.2} {:6.2}  {:.1e} {:16.3} {:6.2} {:6.2}",
            8.0 * bytes as f64 / (2 * KV_HEADS * DIM * tokens) as f64,
            1e3 * seconds,
            bytes as f64 / seconds / 1e9,
            read_seconds(bytes, turns) / seconds,
            best[0][0].as_secs_f64() / seconds,
            best[1][0].as_secs_f64() / seconds,
            errors[i],
            1e3 * shared,
            best[0][1].as_secs_f64() / shared,
            best[1][1].as_secs_f64() / shared,
        );
        assert!(errors[i] < 1e-3, "{name}: error {}", errors[i]);
    }
    let mut criterion = Criterion::default().configure_from_args().sample_size(10);
    let mut group = criterion.benchmark_group(format!("kv/{heads}x{KV_HEADS}x{DIM}x{tokens}"));
    for ((name, _), layer) in forms.iter().zip(&layers) {
        group.bench_function(*name, |b| b.iter(|| attend(layer, &q, &mut out, &mut scratch)));
    }
    group.finish();
}

/// What a policy costs beside attention, while tokens come one by one at a full budget.
fn bookkeeping(tokens: usize, test: bool) {
    let steps = if test { 3 } else { 256 };
    println!(
        "\npolicy, f16 store, {tokens} tokens held: attention and policy per token, and the policy's share"
    );
    let budget = Budget::Tokens(tokens);
    let shape = KvShape::new(KV_HEADS, KV_HEADS, DIM).expect("a shape");
    let policies = [
        ("none", None),
        ("h2o", Some(h2o(0.5, budget))),
        ("snapkv", Some(snapkv(32, 5, budget))),
        ("knorm", Some(knorm(budget))),
    ];
    let mut alone = 0.0;
    for (name, policy) in policies {
        let empty = Layer::new(shape, StoreForm::Float(DType::F16)).expect("a form");
        let mut cache = Cache::new(empty);
        if let Some(policy) = policy {
            cache = cache.with_policy(policy, LayerAt { index: 0, of: 1 }).expect("a policy");
        }
        let mut scratch = Scratch::default();
        let mut out = Array3::zeros((1, KV_HEADS, DIM));
        for start in (0..tokens).step_by(1024) {
            let [k, v] = [1, 2].map(|seed| noise(1024, KV_HEADS, start as u64 + seed));
            cache.append(k.view(), v.view()).expect("appends");
        }
        let q = noise(64, KV_HEADS, 7);
        let mut prompt = Array3::zeros(q.raw_dim());
        cache.attend(q.view(), None, prompt.view_mut(), &mut scratch).expect("attends");
        let mut step = |seed: u64| {
            let [k, v, q] = [1, 2, 3].map(|s| noise(1, KV_HEADS, seed + s));
            let start = Instant::now();
            cache.append(k.view(), v.view()).expect("appends");
            cache.attend(q.view(), None, out.view_mut(), &mut scratch).expect("attends");
            start.elapsed().as_secs_f64()
        };
        for i in 0..64.min(steps) {
            step(1_000 + i);
        }
        let seconds = (0..steps).map(|i| step(9_000 + i)).sum::<f64>() / steps as f64;
        if name == "none" {
            alone = seconds;
        }
        println!("{name:8} {:8.3} ms  {:5.1}%", 1e3 * seconds, 100.0 * (seconds / alone - 1.0));
    }
}

/// What taking a token costs beside attention over those held.
fn appending(tokens: usize, test: bool) {
    let steps = if test { 3 } else { 256 };
    println!("\nappend and attention per token, {tokens} tokens held, and the append's share");
    let forms = [
        ("f16", StoreForm::Float(DType::F16)),
        ("int4 g32", StoreForm::Int(Int::new(4))),
        ("int2 g32", StoreForm::Int(Int::new(2))),
        ("mustafar 70%", StoreForm::Bitmap(Bitmap::new(0.7))),
    ];
    for (name, form) in forms {
        let mut layer = layer(KV_HEADS, tokens, form);
        let mut scratch = Scratch::default();
        let mut out = Array3::zeros((1, KV_HEADS, DIM));
        let (mut append, mut attention) = (0.0, 0.0);
        for step in 0..steps {
            let [k, v, q] = [1, 2, 3].map(|s| noise(1, KV_HEADS, 9_000 + step + s));
            let start = Instant::now();
            layer.append(k.view(), v.view()).expect("appends");
            append += start.elapsed().as_secs_f64();
            let start = Instant::now();
            attend(&layer, &q, &mut out, &mut scratch);
            attention += start.elapsed().as_secs_f64();
        }
        let [append, attention] = [append, attention].map(|s| 1e6 * s / steps as f64);
        let share = 100.0 * append / attention;
        println!("{name:13} {append:7.1} us {attention:8.1} us  {share:5.1}%");
    }
}

/// A prompt, whose queries see what comes before them.
fn prefill(tokens: usize, test: bool) {
    println!("\nprompt of {tokens} tokens, {KV_HEADS} heads x {DIM}: one thread, all");
    for (name, form) in [
        ("f16", StoreForm::Float(DType::F16)),
        ("int4 g32", StoreForm::Int(Int::new(4))),
        ("mustafar 70%", StoreForm::Bitmap(Bitmap::new(0.7))),
    ] {
        let layer = layer(KV_HEADS, tokens.max(1024), form);
        let q = noise(tokens, KV_HEADS, 5);
        let mut out = Array3::zeros(q.raw_dim());
        let first = layer.len() - tokens;
        let mut best = [f64::INFINITY; 2];
        for _ in 0..if test { 1 } else { 3 } {
            for (scratch, best) in
                [Scratch::default(), Scratch::new(Par::Rayon)].iter_mut().zip(&mut best)
            {
                let start = Instant::now();
                let causal = Causal::from(first);
                layer.attend(q.view(), causal, out.view_mut(), scratch, None).expect("attends");
                *best = start.elapsed().as_secs_f64().min(*best);
            }
        }
        let operations = 2.0 * (tokens * tokens * KV_HEADS * DIM) as f64;
        let speed = best.map(|s| operations / s / 1e9);
        println!(
            "{name:13} {:8.1} ms {:8.1} ms, {:.1} and {:.1} GFLOP/s of what is seen",
            1e3 * best[0],
            1e3 * best[1],
            speed[0],
            speed[1]
        );
    }
}

/// What the process takes for a cache of 2 bits, beside what the cache says.
fn long(tokens: usize, test: bool) {
    let before = resident();
    let layer = layer(KV_HEADS, tokens, StoreForm::Int(Int::new(2)));
    let (Some(before), Some(after)) = (before, resident()) else { return };
    let (bytes, taken) = (layer.bytes(), after.saturating_sub(before));
    let pages = (2 * KV_HEADS * tokens.div_ceil(256)) as u64;
    let rest = taken as i64 - bytes as i64;
    println!(
        "\n2 bits, {tokens} tokens: {bytes} bytes said, {taken} taken: {:.1} more a page of 256 tokens",
        rest as f64 / pages as f64
    );
    // Headers of pages and of what they allocate; what one block of input needs is not given back at once.
    assert!(test || rest <= (256 * pages + (32 << 20)) as i64, "{rest} bytes more than said");
}

/// Bytes of memory this process has, where Linux says it.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| 1024 * kib)
}
