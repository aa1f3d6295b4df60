//! What a compression pipeline and a generating program do with a model.

use std::collections::BTreeMap;
use std::path::Path;

use tensorpress_model::text::{self, Limits, Windows, calibration_windows};
use tensorpress_model::{Generation, SharedInput, Source, calibrate, embedded, generate_text};
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::{Array2, Axis, concatenate};
use tensorpress_tensor::node::decode;
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{DType, Registry, Scratch, node::Dense};

use serde_json::json;

use crate::common::{Tiny, logits, max_difference, open};

fn demo() -> Source {
    Source::demo(&Registry::default()).unwrap()
}

#[test]
fn specs_name_stored_weights_and_extras_are_the_rest() {
    let source = demo();
    let mut names: Vec<String> = source.extras();
    for block in 0..source.blocks() {
        let specs = source.linears(block);
        assert_eq!(specs.len(), 7);
        for spec in &specs {
            assert_eq!(source.weight(&spec.name).unwrap().shape(), spec.shape, "{}", spec.name);
            let folds = matches!(spec.input, SharedInput::Attention | SharedInput::Mlp);
            assert_eq!(spec.norm.is_some(), folds);
            if let Some(norm) = &spec.norm {
                assert!(source.extras().contains(norm));
            }
        }
        names.extend(specs.into_iter().map(|s| s.name));
    }
    names.sort();
    assert!(names.iter().map(String::as_str).eq(source.checkpoint().names()));
}

#[test]
fn streaming_block_by_block_is_the_whole_model() {
    let source = demo();
    let tokenizer = source.tokenizer().unwrap();
    let cut = Windows { chars: 4000, windows: 5, length: 64 };
    let windows = calibration_windows(embedded::CALIBRATION, &tokenizer, cut).unwrap();
    assert!(windows.len() == 5 && windows.iter().all(|w| w.len() == 64));
    assert!(windows.iter().all(|w| w[0] == 1 && !w[1..].contains(&1)));
    let lengths: Vec<usize> = windows.iter().map(Vec::len).collect();
    let mut scratch = Scratch::new(Par::Rayon);
    let embedding = source.embedding().unwrap();
    let mut hidden = embedding.embed(&windows.concat(), &mut scratch).unwrap();
    for block in 0..source.blocks() {
        let block = source.block(block).unwrap();
        block.forward_sequences(hidden.view_mut(), &lengths, None, &mut scratch).unwrap();
    }
    let streamed = source.head().unwrap().logits(hidden.view(), &mut scratch).unwrap();
    let model = source.decoder().unwrap();
    let whole: Vec<Array2<f32>> = windows.iter().map(|w| logits(&model, w).unwrap()).collect();
    let whole: Vec<_> = whole.iter().map(|w| w.view()).collect();
    assert!(max_difference(&streamed, &concatenate(Axis(0), &whole).unwrap()) < 1e-4);
}

#[test]
fn calibration_collects_what_is_asked_whatever_the_threads() {
    let source = demo();
    let tokenizer = source.tokenizer().unwrap();
    let cut = Windows { chars: 30_000, windows: 40, length: 100 };
    let windows = calibration_windows(embedded::CALIBRATION, &tokenizer, cut).unwrap();
    let lengths: Vec<usize> = windows.iter().map(Vec::len).collect();
    let block = source.block(0).unwrap();
    let hidden =
        source.embedding().unwrap().embed(&windows.concat(), &mut Scratch::default()).unwrap();
    let needs = |input| match input {
        SharedInput::MlpOutput => Needs::NONE,
        _ => Needs::GRAM.union(Needs::MOMENTS).union(Needs::samples(16)),
    };
    let run = |par| calibrate(&block, hidden.view(), &lengths, &needs, 7, par).unwrap();
    let (seq, par) = (run(Par::Seq), run(Par::Threads(3)));
    assert_eq!(seq.len(), 4);
    for input in SharedInput::ALL {
        assert_eq!(seq[&input].channels(), block.channels(input));
        if input == SharedInput::MlpOutput {
            assert!(seq[&input].gram().is_err());
            continue;
        }
        assert_eq!(seq[&input].tokens(), hidden.nrows() as u64);
        assert_eq!(seq[&input].gram().unwrap(), par[&input].gram().unwrap());
        assert_eq!(seq[&input].samples().unwrap().nrows(), 16);
    }
    // The Gram matrix of the first input is that of the normed embeddings.
    let mut x = hidden.clone();
    let norm = source.checkpoint().tensor(source.linears(0)[0].norm.as_ref().unwrap()).unwrap();
    let norm = tensorpress_tensor::Tensor::to_matrix(&norm).unwrap();
    for mut row in x.rows_mut() {
        let rms = (row.dot(&row) / row.len() as f32 + 1e-5).sqrt();
        row.zip_mut_with(&norm.row(0), |v, w| *v *= w / rms);
    }
    let gram = x.t().dot(&x);
    let got = seq[&SharedInput::Attention].gram().unwrap();
    let scale = gram.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    assert!(max_difference(got, &gram) < 1e-4 * scale);
}

#[test]
fn a_replaced_weight_counts() {
    let tiny = Tiny::new(4, 2, 6);
    let (_folder, source) = tiny.source();
    let source = source.unwrap();
    let ids: Vec<u32> = (0..20).map(|i| i * 7 % 61).collect();
    let before = logits(&source.decoder().unwrap(), &ids).unwrap();
    let mut model = source.decoder().unwrap();
    let spec = &source.linears(1)[5];
    let halved = decode(source.weight(&spec.name).unwrap().as_ref()).unwrap() * 0.5;
    model.blocks_mut()[1].replace(&spec.name, Box::new(Dense::from(halved))).unwrap();
    let after = logits(&model, &ids).unwrap();
    assert!(max_difference(&before, &after) > 1e-3);
    // The same by changing the file.
    let mut changed = tiny.clone();
    changed.tensors.get_mut(&spec.name).unwrap().1.iter_mut().for_each(|v| *v *= 0.5);
    // Once by a kernel over stored numbers, once by a product of decoded ones: equal to rounding.
    let size = after.iter().fold(0.0f32, |most, v| most.max(v.abs()));
    let apart = max_difference(&after, &logits(&changed.decoder(), &ids).unwrap());
    assert!(apart < 1e-5 * (1.0 + size), "{apart} apart, of {size}");
    let wrong = Box::new(Dense::from(Array2::zeros((3, 3))));
    let error = model.blocks_mut()[1].replace(&spec.name, wrong).unwrap_err();
    assert_eq!(error.tensor(), Some(spec.name.as_str()));
    assert!(model.blocks_mut()[0].linear_mut(&spec.name).is_err());
}

#[test]
fn a_bias_correction_is_read_though_the_config_knows_none() {
    let mut tiny = Tiny::new(4, 2, 6);
    let ids = [1, 5, 9, 13];
    let before = logits(&tiny.decoder(), &ids).unwrap();
    let name = "model.layers.0.mlp.down_proj.bias";
    tiny.tensors.insert(name.into(), (vec![24], vec![0.5; 24]));
    let (_folder, source) = tiny.source();
    let source = source.unwrap();
    assert!(source.extras().contains(&name.to_owned()));
    assert!(max_difference(&before, &logits(&source.decoder().unwrap(), &ids).unwrap()) > 1e-3);
}

#[test]
fn compressed_weights_are_read_through_the_registry() {
    let tiny = Tiny::new(4, 2, 6);
    let ids = [1, 5, 9, 13, 60];
    let before = logits(&tiny.decoder(), &ids).unwrap();
    // A linear layer and the embedding become trees; their parts replace the weights.
    let names = ["model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight"];
    let mut compressed = tiny.clone();
    let mut trees = serde_json::Map::new();
    for name in names {
        let (shape, values) = compressed.tensors.remove(name).unwrap();
        let half: Vec<f32> = values.iter().map(|v| v / 2.0).collect();
        let leaf = json!({"node": "dense.v1", "dtype": "F32", "shape": shape});
        for child in [0, 1] {
            let part = format!("{name}.{child}.values");
            compressed.tensors.insert(part, (shape.clone(), half.clone()));
        }
        trees.insert(name.into(), json!({"node": "sum.v1", "terms": [leaf, leaf]}));
    }
    compressed.metadata.insert("tensorpress".into(), serde_json::Value::Object(trees).to_string());
    compressed.config["quantization_config"] = json!({"quant_method": "tensorpress", "version": 1});
    let (folder, source) = compressed.source();
    let source = source.unwrap();
    assert_eq!(source.trees().len(), 2);
    let extras = source.extras();
    assert!(!extras.iter().any(|n| n.starts_with(names[0])), "{extras:?}");
    assert!(extras.contains(&format!("{}.0.values", names[1])), "{extras:?}");
    let plain = source.decoder().unwrap();
    assert!(max_difference(&before, &logits(&plain, &ids).unwrap()) < 1e-5);
    let packed = source.decoder().unwrap().prepack().unwrap();
    assert!(max_difference(&before, &logits(&packed, &ids).unwrap()) < 1e-5);
    // A missing part is an error that names it.
    let part = format!("{}.1.values", names[0]);
    let lost = compressed.tensors.remove(&part).unwrap();
    compressed.write(folder.path());
    let error = open(folder.path()).unwrap().decoder().unwrap_err();
    assert_eq!(error.tensor(), Some(part.as_str()), "{error}");
    assert!(error.file().is_some(), "{error}");
    // So is a tree of another shape than the config's.
    compressed.tensors.insert(part, lost);
    compressed.config["intermediate_size"] = json!(39);
    compressed.write(folder.path());
    let error = open(folder.path()).unwrap().decoder().unwrap_err();
    assert_eq!(error.kind(), tensorpress_tensor::ErrorKind::ShapeMismatch, "{error}");
}

#[test]
fn generation_is_greedy_or_seeded_and_streams_whole_characters() {
    let source = demo();
    let tokenizer = source.tokenizer().unwrap();
    let model = source.decoder().unwrap().materialise().unwrap();
    let run = |how: Generation| {
        let mut pieces = String::new();
        let text = generate_text(&model, &tokenizer, "Once upon a time", how, &mut |piece| {
            pieces.push_str(piece);
        })
        .unwrap();
        assert_eq!(text, pieces);
        text
    };
    let greedy = Generation { max_tokens: 60, ..Generation::default() };
    let start = std::time::Instant::now();
    let text = run(greedy);
    println!("Once upon a time{text}\n60 tokens in {:.3} s", start.elapsed().as_secs_f64());
    assert_eq!(text, run(greedy));
    assert!(text.starts_with([' ', ',']), "{text:?}");
    let sampled = |seed| run(Generation { temperature: 1.0, seed, ..greedy });
    assert_eq!(sampled(1), sampled(1));
    assert_ne!(sampled(1), sampled(2));
    // Greedy means the most probable token each time.
    let ids = tokenizer.encode(&format!("Once upon a time{text}")).unwrap();
    let all = logits(&model, &ids).unwrap();
    let prompt = tokenizer.encode("Once upon a time").unwrap().len();
    let agreed = (prompt..ids.len()).filter(|&i| {
        let row = all.row(i - 1);
        row.iter().all(|v| *v <= row[ids[i] as usize])
    });
    assert!(agreed.count() + 3 >= ids.len() - prompt);
}

#[test]
fn a_stream_of_bytes_gives_whole_characters() {
    let tokenizer = demo().tokenizer().unwrap();
    for text in ["Größe — 模型 🙂 end", " two  spaces", "plain", "🙂"] {
        let ids = tokenizer.encode(text).unwrap();
        let mut stream = tokenizer.stream();
        let mut joined = String::new();
        for id in &ids {
            joined.push_str(&stream.push(*id).unwrap());
        }
        joined.push_str(&stream.finish().unwrap());
        assert_eq!(joined, tokenizer.decode(&ids).unwrap());
    }
}

#[test]
fn bos_comes_once() {
    let tokenizer = demo().tokenizer().unwrap();
    assert_eq!(tokenizer.bos(), Some(1));
    let ids = tokenizer.encode("Tom ran.").unwrap();
    assert_eq!(ids.iter().filter(|id| **id == 1).count(), 1);
    assert_eq!(ids[0], 1);
    assert_eq!(tokenizer.encode("<s>Tom ran.").unwrap().iter().filter(|i| **i == 1).count(), 1);
    assert_eq!(tokenizer.encode("").unwrap(), [1]);
    assert_eq!(tokenizer.encode_plain("Tom ran.").unwrap(), ids[1..]);
    let offsets = tokenizer.encode_with_offsets("Tom ran.").unwrap();
    assert_eq!(offsets.last().unwrap().1.end, 8);
}

#[test]
fn texts_are_cut_as_the_protocol_says() {
    let source = demo();
    let tokenizer = source.tokenizer().unwrap();
    let limits = Limits { max_tokens: Some(50), ..Limits::default() };
    let cut = |text: &str, file: &str, limits| {
        text::segments(text, Path::new(file), &tokenizer, 512, limits)
    };
    let lines = cut(embedded::HELD_OUT, "x.jsonl", limits).unwrap();
    assert!(lines.iter().all(|l| l.len() <= 50 && l[0] == 1));
    assert_eq!(lines.len(), embedded::HELD_OUT.lines().count());
    let windows = cut(embedded::CALIBRATION, "x.txt", limits).unwrap();
    let stream = tokenizer.encode_plain(embedded::CALIBRATION).unwrap();
    let joined: Vec<u32> = windows.iter().flat_map(|w| w[1..].iter().copied()).collect();
    assert_eq!(joined, stream);
    assert!(windows[..windows.len() - 1].iter().all(|w| w.len() == 50));
    let few = Limits { max_segments: Some(2), ..limits };
    assert_eq!(cut(embedded::CALIBRATION, "x.txt", few).unwrap(), windows[..2]);
    let short = Windows { chars: 40, windows: 3, length: 256 };
    let short = calibration_windows(embedded::CALIBRATION, &tokenizer, short).unwrap();
    assert!(short.len() == 1 && short[0].len() < 40);
    let names: BTreeMap<_, _> = source.trees().iter().collect();
    assert!(names.is_empty());
    assert_eq!(source.raw_config()["model_type"], "llama");
    assert_eq!(DType::BF16.size(), 2);
}
