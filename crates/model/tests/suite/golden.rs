//! Logits of golden folders, by an independent implementation.

use std::ops::ControlFlow;
use std::path::Path;

use tensorpress_model::{Block, Observer, Routing, SharedInput, Source};
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::{Array2, Array3, ArrayView1, ArrayView2, s};
use tensorpress_tensor::testing::data;
use tensorpress_tensor::{Checkpoint, ErrorKind, Result, Scratch, Tensor};

use crate::common::{logits, logits_in_pieces, logits_through, max_difference, open};

/// A stored matrix of integers.
fn integers(checkpoint: &Checkpoint, name: &str) -> Vec<Vec<u32>> {
    let tensor = checkpoint.tensor(name).unwrap();
    let values: Vec<u32> =
        tensor.bytes().as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b) as u32).collect();
    values.chunks(tensor.shape()[1]).map(<[u32]>::to_vec).collect()
}

/// A stored `[sequences, tokens, width]`.
fn matrices(checkpoint: &Checkpoint, name: &str) -> Vec<Array2<f32>> {
    let tensor = checkpoint.tensor(name).unwrap();
    let shape = tensor.shape().to_vec();
    let all = tensor.to_matrix().unwrap();
    all.rows()
        .into_iter()
        .map(|row| Array2::from_shape_vec((shape[1], shape[2]), row.to_vec()).unwrap())
        .collect()
}

fn expected(folder: &Path) -> Checkpoint {
    Checkpoint::open(folder.join("expected.safetensors")).unwrap()
}

/// `model.safetensors` stands beside `expected.safetensors`.
fn golden(name: &str) -> Option<std::path::PathBuf> {
    data::find(&format!("golden/models/{name}"))
}

/// The golden folders of decoders, or of encoders, sorted: none is left out but MiniLM, which has its own test.
fn models(decoders: bool) -> Vec<(String, Source)> {
    let Some(all) = data::find("golden/models") else { return Vec::new() };
    let folders = std::fs::read_dir(all).unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<_> = folders.filter(|path| path.join("config.json").exists()).collect();
    folders.sort();
    let mut models = Vec::new();
    for folder in folders {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        if name == "minilm" {
            continue;
        }
        let source = open(&folder).unwrap();
        if source.config().architecture.is_decoder() == decoders {
            models.push((name, source));
        }
    }
    models
}

#[test]
fn decoders_give_the_golden_logits() {
    let mut checked = 0;
    let mut wrong = Vec::new();
    for (name, source) in models(true) {
        let expected = expected(source.folder().unwrap());
        let stored = source.decoder().unwrap();
        if !expected.contains("logits") {
            // An embedding model, which has no head.
            let states = matrices(&expected, "last_hidden_state");
            for (ids, expected) in integers(&expected, "ids").iter().zip(states) {
                let got = stored.last_hidden_state(ids, &mut Scratch::default()).unwrap();
                let apart = max_difference(&got, &expected);
                println!("checked: {name}, largest difference {apart:.2e} of the states");
                assert!(apart < 1e-4, "{name}: {apart}");
            }
            checked += 1;
            continue;
        }
        let decoded = source.decoder().unwrap().materialise().unwrap();
        let packed = source.decoder().unwrap().prepack().unwrap();
        // Where the angles depend on the length, keys keep those of the length at which they were written.
        let stepped = if expected.contains("logits_step") { "logits_step" } else { "logits" };
        let mut worst = [0.0f32; 2];
        let mut check = |ids: &[u32], got: Array2<f32>, expected: &Array2<f32>, which: usize| {
            assert_eq!(got.nrows(), ids.len());
            worst[which] = worst[which].max(max_difference(&got, expected));
        };
        let whole = matrices(&expected, "logits").into_iter().zip(matrices(&expected, stepped));
        for (ids, (whole, steps)) in integers(&expected, "ids").iter().zip(whole) {
            for model in [&stored, &decoded, &packed] {
                check(ids, logits(model, ids).unwrap(), &whole, 0);
                check(ids, logits_in_pieces(model, ids, &[ids.len()]).unwrap(), &whole, 0);
                let one_by_one = vec![1; ids.len()];
                check(ids, logits_in_pieces(model, ids, &one_by_one).unwrap(), &steps, 1);
                let attends = model.blocks().iter().all(Block::attends);
                match model.caches(&"f32".parse().unwrap()) {
                    Ok(caches) => {
                        assert!(attends, "{name}");
                        let by_recipe = logits_through(model, caches, ids, &one_by_one).unwrap();
                        check(ids, by_recipe, &steps, 1);
                    }
                    Err(error) => {
                        assert!(!attends && error.kind() == ErrorKind::Unsupported, "{error}");
                    }
                }
                if stepped == "logits" {
                    check(ids, logits_in_pieces(model, ids, &[3, 10, 1, 20]).unwrap(), &whole, 1);
                }
            }
        }
        if expected.contains("short.logits") {
            let short = matrices(&expected, "short.logits");
            for (ids, expected) in integers(&expected, "short.ids").iter().zip(short) {
                check(ids, logits(&stored, ids).unwrap(), &expected, 0);
                let one_by_one = vec![1; ids.len()];
                check(ids, logits_in_pieces(&stored, ids, &one_by_one).unwrap(), &expected, 1);
            }
        }
        println!(
            "checked: {name}, largest differences {:.2e} whole, {:.2e} stepped ({stepped})",
            worst[0], worst[1]
        );
        checked += 1;
        if worst.iter().any(|worst| worst.is_nan() || *worst >= 1e-4) {
            wrong.push(format!("{name}: {worst:?}"));
        }
    }
    println!("checked: {checked} decoders");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Which experts the tokens of a sequence go to, as blocks tell it.
#[derive(Default)]
struct Routed(Vec<Routing>);

impl Observer for Routed {
    fn input(&mut self, _: SharedInput, _: ArrayView2<'_, f32>) -> Result<ControlFlow<()>> {
        Ok(ControlFlow::Continue(()))
    }

    fn routed(&mut self, routing: &Routing) {
        self.0.push(routing.clone());
    }
}

#[test]
fn routers_choose_the_golden_experts() {
    let (mut layers, mut worst) = (0, 0.0f32);
    for (name, source) in models(true) {
        let expected = expected(source.folder().unwrap());
        let stored = |block: usize, what: &str| format!("router.{block}.topk_{what}");
        if !(0..16).any(|block| expected.contains(&stored(block, "ids"))) {
            continue;
        }
        let model = source.decoder().unwrap();
        let mut scratch = Scratch::default();
        for (sequence, ids) in integers(&expected, "ids").iter().enumerate() {
            let mut hidden = model.embedding().embed(ids, &mut scratch).unwrap();
            for block in model.blocks() {
                let (index, mut seen) = (block.index(), Routed::default());
                let watched: Option<&mut dyn Observer> = Some(&mut seen);
                let lengths = [ids.len()];
                block
                    .forward_sequences(hidden.view_mut(), &lengths, watched, &mut scratch)
                    .unwrap();
                let routes = expected.contains(&stored(index, "ids"));
                assert_eq!(seen.0.len(), usize::from(routes), "{name}, block {index}");
                let Some(routing) = seen.0.first() else { continue };
                let count = ids.len() * routing.chosen;
                let place = sequence * count..(sequence + 1) * count;
                let chosen = expected.tensor(&stored(index, "ids")).unwrap();
                let chosen = &chosen.bytes().as_chunks::<8>().0[place.clone()];
                let chosen: Vec<usize> =
                    chosen.iter().map(|id| i64::from_le_bytes(*id) as usize).collect();
                assert_eq!(routing.experts, chosen, "{name}, block {index}");
                let weights = expected.tensor(&stored(index, "weights")).unwrap();
                let weights = weights.to_matrix().unwrap().into_raw_vec_and_offset().0;
                for (got, expected) in routing.factors.iter().zip(&weights[place]) {
                    worst = worst.max((got - expected).abs());
                }
                layers += 1;
            }
        }
    }
    println!("checked: {layers} sequences through routers, weights within {worst:.2e}");
    assert!(worst < 1e-5, "{worst}");
}

#[test]
fn encoders_give_the_golden_states() {
    let mut wrong = Vec::new();
    // Those that read images have their own tests.
    let texts = models(false).into_iter().filter(|(_, source)| source.config().images.is_none());
    for (name, source) in texts {
        let expected = expected(source.folder().unwrap());
        let encoder = source.encoder().unwrap();
        let (mut worst, mut values) = (0.0f32, 0);
        for prefix in ["", "masked."] {
            let name = |what: &str| format!("{prefix}{what}");
            if !expected.contains(&name("ids")) {
                continue;
            }
            let all = integers(&expected, &name("ids"));
            let masks = match expected.contains(&name("attention_mask")) {
                true => integers(&expected, &name("attention_mask")),
                false => all.iter().map(|ids| vec![1; ids.len()]).collect(),
            };
            let states = matrices(&expected, &name("last_hidden_state"));
            for (i, ids) in all.iter().enumerate() {
                let (mask, types) = (&masks[i], vec![0; ids.len()]);
                let mut scratch = Scratch::default();
                let got = encoder.last_hidden_state(ids, mask, &types, &mut scratch).unwrap();
                let mut compare = |got: &Array2<f32>, expected: &Array2<f32>| {
                    assert_eq!(got.dim(), expected.dim());
                    let rows = got.rows().into_iter().zip(expected.rows()).zip(mask);
                    for ((got, expected), _) in rows.filter(|(_, mask)| **mask != 0) {
                        let apart = got.iter().zip(expected).map(|(a, b)| (a - b).abs());
                        worst = apart.fold(worst, f32::max);
                        values += expected.len();
                    }
                };
                compare(&got, &states[i]);
                if expected.contains(&name("logits")) {
                    let logits = encoder.logits(got.view(), &mut scratch).unwrap();
                    compare(&logits, &matrices(&expected, &name("logits"))[i]);
                }
            }
        }
        println!("checked: {name}, {values} values, largest difference {worst:.2e}");
        if worst.is_nan() || worst >= 1e-4 {
            wrong.push(format!("{name}: {worst}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// `pixel_values`, image by image.
fn images(checkpoint: &Checkpoint) -> Vec<Array3<f32>> {
    let tensor = checkpoint.tensor("pixel_values").unwrap();
    let [_, channels, height, width] = *tensor.shape() else { panic!("four axes") };
    let all = tensor.to_matrix().unwrap();
    let image = |row: ArrayView1<'_, f32>| {
        Array3::from_shape_vec((channels, height, width), row.to_vec()).unwrap()
    };
    all.rows().into_iter().map(image).collect()
}

/// Largest differences from the golden values, by what they are of.
#[derive(Default)]
struct Apart(std::collections::BTreeMap<&'static str, f32>);

impl Apart {
    fn see(&mut self, what: &'static str, got: ArrayView2<'_, f32>, expected: ArrayView2<'_, f32>) {
        assert_eq!(got.dim(), expected.dim(), "{what}");
        let worst = self.0.entry(what).or_default();
        let apart = got.iter().zip(expected).map(|(a, b)| (a - b).abs());
        *worst = apart.fold(*worst, |worst, apart| if apart > worst { apart } else { worst });
        assert!(got.iter().all(|v| v.is_finite()), "{what}");
    }

    /// All is within the tolerance, and nothing of the folder but what it was made of is left out.
    fn check(self, folder: &str, expected: &Checkpoint, given: &[&str]) {
        let seen = expected.names().filter(|name| !given.contains(name));
        assert!(seen.eq(self.0.keys().copied()), "{folder}: {:?}", self.0);
        println!("checked: {folder}, largest differences {:?}", self.0);
        assert!(self.0.values().all(|worst| *worst < 1e-4), "{folder}: {:?}", self.0);
    }
}

fn one_row(values: &[f32]) -> ArrayView2<'_, f32> {
    ArrayView2::from_shape((1, values.len()), values).unwrap()
}

#[test]
fn vit_gives_the_golden_states() {
    let Some(folder) = golden("vit") else { return };
    let (expected, source) = (expected(&folder), open(&folder).unwrap());
    let pooled = expected.tensor("pooler_output").unwrap().to_matrix().unwrap();
    let states = matrices(&expected, "last_hidden_state");
    let (mut apart, mut scratch) = (Apart::default(), Scratch::default());
    for encoder in [source.encoder().unwrap(), source.encoder().unwrap().materialise().unwrap()] {
        for (i, image) in images(&expected).iter().enumerate() {
            let got = encoder.image_hidden_state(image.view(), &mut scratch).unwrap();
            apart.see("last_hidden_state", got.view(), states[i].view());
            let got = encoder.pooled(got.view(), &mut scratch).unwrap();
            apart.see("pooler_output", one_row(&got), pooled.slice(s![i..=i, ..]));
        }
        let refused = encoder.last_hidden_state(&[1], &[1], &[0], &mut scratch).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unsupported);
    }
    apart.check("vit", &expected, &["pixel_values"]);
}

#[test]
fn clip_gives_the_golden_states_embeddings_and_logits() {
    let Some(folder) = golden("clip") else { return };
    let (expected, source) = (expected(&folder), open(&folder).unwrap());
    assert_eq!(source.encoder().unwrap_err().kind(), ErrorKind::Unsupported);
    let model = source.towers().unwrap();
    let rows = |name: &str| expected.tensor(name).unwrap().to_matrix().unwrap();
    let (mut apart, mut scratch) = (Apart::default(), Scratch::default());
    let mut texts = Array2::zeros((0, 20));
    let states = matrices(&expected, "text_last_hidden_state");
    for (i, ids) in integers(&expected, "ids").iter().enumerate() {
        let (mask, types) = (vec![1; ids.len()], vec![0; ids.len()]);
        let got = model.texts().last_hidden_state(ids, &mask, &types, &mut scratch).unwrap();
        apart.see("text_last_hidden_state", got.view(), states[i].view());
        let got = model.embed_text(ids, &mut scratch).unwrap();
        apart.see("text_embeds", one_row(&got), rows("text_embeds").slice(s![i..=i, ..]));
        texts.push_row(ArrayView1::from(&got)).unwrap();
    }
    let mut seen = Array2::zeros((0, 20));
    let states = matrices(&expected, "vision_last_hidden_state");
    for (i, image) in images(&expected).iter().enumerate() {
        let got = model.images().image_hidden_state(image.view(), &mut scratch).unwrap();
        apart.see("vision_last_hidden_state", got.view(), states[i].view());
        let got = model.embed_image(image.view(), &mut scratch).unwrap();
        apart.see("image_embeds", one_row(&got), rows("image_embeds").slice(s![i..=i, ..]));
        seen.push_row(ArrayView1::from(&got)).unwrap();
    }
    let logits = model.logits(seen.view(), texts.view()).unwrap();
    apart.see("logits_per_image", logits.view(), rows("logits_per_image").view());
    apart.check("clip", &expected, &["ids", "pixel_values"]);
    // A text that never ends has no place.
    let error = model.embed_text(&[5, 6], &mut scratch).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
}

#[test]
fn minilm_gives_the_golden_embeddings() {
    let (Some(folder), Some(golden)) = (data::minilm(), golden("minilm")) else { return };
    let expected = expected(&golden);
    let text = std::fs::read_to_string(golden.join("sentences.json")).unwrap();
    let sentences: Vec<String> = serde_json::from_str(&text).unwrap();
    let source = open(&folder).unwrap();
    let (tokenizer, encoder) = (source.tokenizer().unwrap(), source.encoder().unwrap());
    let (ids, masks) = (integers(&expected, "input_ids"), integers(&expected, "attention_mask"));
    let embeddings = expected.tensor("embeddings").unwrap().to_matrix().unwrap();
    let texts: Vec<&str> = sentences.iter().map(String::as_str).collect();
    let got = encoder.embed(&tokenizer, &texts).unwrap();
    for (i, sentence) in sentences.iter().enumerate() {
        let real: Vec<u32> =
            ids[i].iter().zip(&masks[i]).filter(|(_, m)| **m != 0).map(|(id, _)| *id).collect();
        assert_eq!(tokenizer.encode_template(sentence).unwrap(), real, "{sentence}");
        let cosine = got.row(i).dot(&embeddings.row(i));
        // With the padding that the reference had, and in parallel inside.
        let padded = encoder.embed_ids(&ids[i], &masks[i], &mut Scratch::new(Par::Rayon)).unwrap();
        let both = got.row(i).dot(&tensorpress_tensor::ndarray::ArrayView1::from(&padded));
        println!("checked: minilm, cosine {cosine:.7}, padded {both:.7}");
        assert!(cosine >= 0.9999 && both >= 0.9999, "{sentence}: {cosine} {both}");
    }
}
