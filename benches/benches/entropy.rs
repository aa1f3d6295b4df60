//! Lossless coding beside its rivals: all on one thread, the same bf16 values, taking turns in one run, memcpy beside
//! them. `--test` runs everything once, on little data. Every decoder's answer is checked before it is timed.
//!
//! The values are all-MiniLM-L6-v2 rounded to bf16 where `TENSORPRESS_MINILM` names its folder, else normal noise.

use std::hint::black_box;
use std::time::{Duration, Instant};

use constriction::stream::Decode;
use constriction::stream::model::SmallContiguousCategoricalEntropyModel;
use constriction::stream::stack::SmallAnsCoder;
use criterion::{Criterion, Throughput};
use rayon::prelude::*;
use tensorpress_entropy::chunk::{self, CHUNK_BYTES, Effort};
use tensorpress_entropy::value::ValueType;
use tensorpress_tensor::kernels::Isa;
use tensorpress_tensor::{Checkpoint, DType, Tensor};

fn main() {
    let test = std::env::args().any(|arg| arg == "--test");
    println!("instruction sets: {:?}, chosen: {}", Isa::available(), Isa::detect());
    let data = values(if test { 1 << 18 } else { 1 << 25 });
    side_by_side(&data, test);
    criterion_figures(&data, test);
}

/// bf16 values, little-endian: whole chunks, at most `bytes`.
fn values(bytes: usize) -> Vec<u8> {
    let mut data = Vec::new();
    if let Some(folder) = std::env::var_os("TENSORPRESS_MINILM") {
        let file = std::path::Path::new(&folder).join("model.safetensors");
        let checkpoint = Checkpoint::open(file).expect("all-MiniLM-L6-v2");
        for name in checkpoint.names() {
            let tensor = checkpoint.tensor(name).expect("a tensor");
            if tensor.dtype() == DType::F32 && data.len() < bytes {
                let values = tensor.to_matrix().expect("floats").into_raw_vec_and_offset().0;
                DType::BF16.write_f32(&values, &mut data).expect("a float type");
            }
        }
    } else {
        let mut x = 88_172_645_463_325_252u64;
        let mut part = || {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            (x >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        };
        let noise: Vec<f32> =
            (0..bytes / 2).map(|_| 0.05 * (part() + part() + part() + part())).collect();
        DType::BF16.write_f32(&noise, &mut data).expect("a float type");
    }
    data.truncate((data.len().min(bytes) / CHUNK_BYTES.min(bytes)) * CHUNK_BYTES.min(bytes));
    data
}

/// Something to time, and its name.
type Racer<'a> = (&'static str, Box<dyn FnMut() + 'a>);

/// Shortest of the times of several runs, taking turns.
fn race(turns: usize, racers: &mut [Racer<'_>]) -> Vec<Duration> {
    let mut best = vec![Duration::MAX; racers.len()];
    for _ in 0..turns {
        for ((_, racer), best) in racers.iter_mut().zip(&mut best) {
            let start = Instant::now();
            racer();
            *best = start.elapsed().min(*best);
        }
    }
    best
}

fn counts(bytes: &[u8]) -> [u32; 256] {
    let mut counts = [0; 256];
    bytes.iter().for_each(|b| counts[usize::from(*b)] += 1);
    counts
}

fn side_by_side(data: &[u8], test: bool) {
    let turns = if test { 1 } else { 9 };
    let chunks: Vec<&[u8]> = data.chunks(CHUNK_BYTES).collect();
    let encode =
        |c: &[u8]| chunk::encode(ValueType::BF16, c, None, Effort::Fast).expect("one chunk");
    let coded: Vec<Vec<u8>> = chunks.iter().map(|c| encode(c)).collect();
    let zstd: Vec<Vec<u8>> =
        chunks.iter().map(|c| zstd::bulk::compress(c, 3).expect("zstd")).collect();
    let words: Vec<u16> = data.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b)).collect();
    let level8 = pco::ChunkConfig::default().with_compression_level(8);
    let pco_coded = pco::standalone::simple_compress(&words, &level8).expect("pco");
    let size = |parts: &[Vec<u8>]| {
        100.0 * parts.iter().map(Vec::len).sum::<usize>() as f64 / data.len() as f64
    };
    println!(
        "{} bytes of bf16: tensorpress {:.2}%, zstd -3 {:.2}%, pco 8 {:.2}%",
        data.len(),
        size(&coded),
        size(&zstd),
        100.0 * pco_coded.len() as f64 / data.len() as f64
    );

    // The exponent plane, for the coders by themselves.
    let exponents: Vec<u8> = words.iter().map(|w| (w >> 7) as u8).collect();
    let encode_plane =
        |c: &[u8]| chunk::encode(ValueType::Bytes, c, None, Effort::Fast).expect("one chunk");
    let rans: Vec<Vec<u8>> = exponents.chunks(CHUNK_BYTES).map(encode_plane).collect();
    let coding = chunk::describe(ValueType::Bytes, &rans[0], exponents.len().min(CHUNK_BYTES));
    assert_eq!(coding.expect("own chunk")[0].coding, "rans");
    let probabilities: Vec<f64> =
        counts(&exponents).iter().map(|n| f64::from((*n).max(1))).collect();
    let model = SmallContiguousCategoricalEntropyModel::from_floating_point_probabilities_fast(
        &probabilities,
        None,
    )
    .expect("probabilities");
    let mut ans = SmallAnsCoder::new();
    ans.encode_iid_symbols_reverse(exponents.iter().map(|e| usize::from(*e)), &model).expect("ANS");
    let lookup = model.to_lookup_decoder_model();

    let [mut copy, mut out, mut zout] = [(); 3].map(|()| vec![0u8; data.len()]);
    let mut pco_out = vec![0u16; words.len()];
    let mut symbols = vec![0u8; exponents.len()];
    let mut theirs = vec![0u8; exponents.len()];
    let mut both = vec![0u8; data.len()];
    let decode =
        |c: &Vec<u8>, o: &mut [u8]| chunk::decode(ValueType::BF16, c, None, o).expect("own chunk");
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("two threads");
    let mut zcoder = zstd::bulk::Compressor::new(3).expect("zstd");
    let mut zdecoder = zstd::bulk::Decompressor::new().expect("zstd");
    let mut racers: Vec<Racer<'_>> = vec![
        ("memcpy", Box::new(|| copy.copy_from_slice(black_box(data)))),
        (
            "decode",
            Box::new(|| {
                coded.iter().zip(out.chunks_mut(CHUNK_BYTES)).for_each(|(c, o)| decode(c, o));
            }),
        ),
        (
            "decode, two threads",
            Box::new(|| {
                pool.install(|| {
                    coded
                        .par_iter()
                        .zip(both.par_chunks_mut(CHUNK_BYTES))
                        .for_each(|(c, o)| decode(c, o));
                });
            }),
        ),
        (
            "zstd -3 decode",
            Box::new(|| {
                for (c, o) in zstd.iter().zip(zout.chunks_mut(CHUNK_BYTES)) {
                    zdecoder.decompress_to_buffer(c, o).expect("zstd");
                }
            }),
        ),
        (
            "pco level 8 decode",
            Box::new(|| {
                pco::standalone::simple_decompress_into(&pco_coded, &mut pco_out).expect("pco");
            }),
        ),
        (
            "rANS decode",
            Box::new(|| {
                for (c, o) in rans.iter().zip(symbols.chunks_mut(CHUNK_BYTES)) {
                    chunk::decode(ValueType::Bytes, c, None, o).expect("own chunk");
                }
            }),
        ),
        (
            "constriction lookup decode",
            Box::new(|| {
                let mut coder = ans.clone();
                let decoded = coder.decode_iid_symbols(theirs.len(), &lookup);
                for (o, s) in theirs.iter_mut().zip(decoded) {
                    *o = s.expect("ANS") as u8;
                }
            }),
        ),
        ("encode", Box::new(|| chunks.iter().for_each(|c| drop(black_box(encode(c)))))),
        (
            "encode, two threads",
            Box::new(|| {
                pool.install(|| chunks.par_iter().for_each(|c| drop(black_box(encode(c)))));
            }),
        ),
        (
            "zstd -3 encode",
            Box::new(|| {
                chunks.iter().for_each(|c| drop(black_box(zcoder.compress(c).expect("zstd"))));
            }),
        ),
    ];
    let times = race(turns, &mut racers);
    let names: Vec<&str> = racers.iter().map(|(name, _)| *name).collect();
    drop(racers);
    assert!(out == data && both == data && zout == data, "decoders give the data back");
    assert!(pco_out == words && symbols == exponents && theirs == exponents);
    let of = |name: &str| {
        let i = names.iter().position(|n| *n == name).expect("a racer");
        times[i].as_secs_f64()
    };
    for name in &names {
        let rate = data.len() as f64 / of(name) / 1e9;
        println!("{name:28} {rate:8.3} GB/s of bf16, {:6.3} of memcpy", of("memcpy") / of(name));
    }
    println!(
        "decode is {:.2} x zstd -3 and {:.2} x pco; rANS {:.1} x constriction; encode {:.2} x zstd -3; two threads {:.2} x and {:.2} x one",
        of("zstd -3 decode") / of("decode"),
        of("pco level 8 decode") / of("decode"),
        of("constriction lookup decode") / of("rANS decode"),
        of("zstd -3 encode") / of("encode"),
        of("decode") / of("decode, two threads"),
        of("encode") / of("encode, two threads"),
    );
}

fn criterion_figures(data: &[u8], test: bool) {
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("chunks of 1 MiB");
    let some = &data[..data.len().min(if test { CHUNK_BYTES } else { 8 * CHUNK_BYTES })];
    group.throughput(Throughput::Bytes(some.len() as u64));
    let mut out = vec![0; some.len()];
    for values in [ValueType::BF16, ValueType::F16, ValueType::F32, ValueType::Bytes] {
        let best = |c: &[u8]| chunk::encode(values, c, None, Effort::Best).expect("one chunk");
        let coded: Vec<Vec<u8>> = some.chunks(CHUNK_BYTES).map(best).collect();
        let mut decode = || {
            for (c, o) in coded.iter().zip(out.chunks_mut(CHUNK_BYTES)) {
                chunk::decode(values, c, None, o).expect("own chunk");
            }
        };
        decode();
        group.bench_function(format!("decode {}, best", values.name()), |b| b.iter(&mut decode));
        assert!(out == some, "decoded from the best effort");
        let encode = |c: &[u8]| chunk::encode(values, c, None, Effort::Fast).expect("one chunk");
        let coded: Vec<Vec<u8>> = some.chunks(CHUNK_BYTES).map(encode).collect();
        for isa in Isa::available() {
            let mut decode = || {
                for (c, o) in coded.iter().zip(out.chunks_mut(CHUNK_BYTES)) {
                    chunk::decode_on(isa, values, c, None, o).expect("own chunk");
                }
            };
            decode();
            group.bench_function(format!("decode {}, {isa}", values.name()), |b| {
                b.iter(&mut decode)
            });
            assert!(out == some, "decoded on {isa}");
        }
        group.bench_function(format!("encode {}", values.name()), |b| {
            b.iter(|| some.chunks(CHUNK_BYTES).map(encode).map(|c| c.len()).sum::<usize>());
        });
    }
    group.finish();
    criterion.final_summary();
}
