//! Models of images as other checkpoints have them, and bad ones.

use std::path::Path;

use serde_json::{Value, json};
use tensorpress_model::text::Corpus;
use tensorpress_model::{Reads, Source};
use tensorpress_tensor::checkpoint::write_shard;
use tensorpress_tensor::ndarray::{Array1, Array2, Array3, Axis};
use tensorpress_tensor::testing::data;
use tensorpress_tensor::{
    Checkpoint, DType, Error, ErrorKind, Part, PartKind, RawTensor, Result, Scratch, Tensor,
};

use crate::common::open;

/// A golden folder's config and tensors, to be changed and written elsewhere.
struct Changed {
    config: Value,
    tensors: Vec<(String, RawTensor)>,
}

impl Changed {
    fn new(name: &str) -> Option<Self> {
        let folder = data::find(&format!("golden/models/{name}"))?;
        let text = std::fs::read_to_string(folder.join("config.json")).unwrap();
        let checkpoint = Checkpoint::open(folder.join("model.safetensors")).unwrap();
        let tensor = |name: &str| (name.to_owned(), checkpoint.tensor(name).unwrap());
        let tensors = checkpoint.names().map(tensor).collect();
        Some(Self { config: serde_json::from_str(&text).unwrap(), tensors })
    }

    fn add(&mut self, name: &str, shape: &[usize], values: &[f32]) {
        let mut bytes = Vec::new();
        DType::F32.write_f32(values, &mut bytes).unwrap();
        let tensor = RawTensor::new(DType::F32, shape.to_vec(), bytes.into()).unwrap();
        self.tensors.push((name.to_owned(), tensor));
    }

    fn open(&self, folder: &Path) -> Result<Source> {
        std::fs::write(folder.join("config.json"), self.config.to_string()).unwrap();
        let mut sorted: Vec<_> = self.tensors.iter().collect();
        sorted.sort_by(|a, b| a.0.cmp(&b.0));
        write_shard(&folder.join("model.safetensors"), &Default::default(), &mut |sink| {
            sorted.iter().try_for_each(|(name, tensor)| {
                sink.part(Part {
                    name: name.clone(),
                    kind: PartKind::Values,
                    dtype: tensor.dtype(),
                    shape: tensor.shape().to_vec(),
                    bytes: tensor.bytes()[..].into(),
                })
            })
        })
        .unwrap();
        open(folder)
    }
}

/// The first golden image of a folder.
fn image(name: &str, source: &Source) -> Array3<f32> {
    let file = data::find(&format!("golden/models/{name}/expected.safetensors")).unwrap();
    Corpus::read(&file).unwrap().images(source, 1).unwrap().index_axis_move(Axis(0), 0)
}

fn states(source: &Source, name: &str) -> Array2<f32> {
    let (encoder, mut scratch) = (source.encoder().unwrap(), Scratch::default());
    encoder.image_hidden_state(image(name, source).view(), &mut scratch).unwrap()
}

#[test]
fn a_classifier_stands_on_the_class_token() {
    let Some(mut vit) = Changed::new("vit") else { return };
    let plain = open(data::find("golden/models/vit").unwrap()).unwrap();
    let pooler = |name: &str| name.starts_with("pooler.");
    vit.tensors.retain(|(name, _)| !pooler(name));
    vit.tensors.iter_mut().for_each(|(name, _)| *name = format!("vit.{name}"));
    let weight: Vec<f32> = (0..3 * 32).map(|i| (i % 7) as f32 - 3.0).collect();
    vit.add("classifier.weight", &[3, 32], &weight);
    vit.add("classifier.bias", &[3], &[1.0, 2.0, 3.0]);
    vit.config["architectures"] = json!(["ViTForImageClassification"]);
    let folder = tempfile::tempdir().unwrap();
    let source = vit.open(folder.path()).unwrap();
    let hidden = states(&source, "vit");
    assert_eq!(hidden, states(&plain, "vit"));
    let (encoder, mut scratch) = (source.encoder().unwrap(), Scratch::default());
    let got = encoder.classify(hidden.view(), &mut scratch).unwrap();
    let weight = Array2::from_shape_vec((3, 32), weight).unwrap();
    let by_hand = weight.dot(&hidden.row(0)) + Array1::from(vec![1.0, 2.0, 3.0]);
    assert!(got.iter().zip(&by_hand).all(|(a, b)| (a - b).abs() < 1e-4), "{got:?} {by_hand}");
    let unsupported = |error: Error| assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    unsupported(encoder.pooled(hidden.view(), &mut scratch).unwrap_err());
    let plain = plain.encoder().unwrap();
    unsupported(plain.classify(hidden.view(), &mut scratch).unwrap_err());
    let narrow = hidden.slice(tensorpress_tensor::ndarray::s![.., ..31]);
    let error = encoder.classify(narrow, &mut scratch).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ShapeMismatch);
}

#[test]
fn towers_of_clip_stand_alone_too() {
    let Some(clip) = Changed::new("clip") else { return };
    let whole = open(data::find("golden/models/clip").unwrap()).unwrap();
    let (towers, mut scratch) = (whole.towers().unwrap(), Scratch::default());
    assert_eq!(whole.config().stacks(), [(0..2, Reads::Tokens), (2..4, Reads::Images)]);
    assert!(whole.linears(3).iter().all(|spec| spec.name.starts_with("vision_model.")));
    assert_eq!(whole.config().shape(3), whole.config().stack(1).shape(1));
    let ids = [5, 9, 2, 40, 98];
    for prefixed in [true, false] {
        for (key, prefix) in [("text_config", "text_model."), ("vision_config", "vision_model.")] {
            let kept = clip.tensors.iter().filter(|(name, _)| name.starts_with(prefix));
            let named = |(name, tensor): &(String, RawTensor)| {
                let name = if prefixed { name.as_str() } else { &name[prefix.len()..] };
                (name.to_owned(), tensor.clone())
            };
            let alone =
                Changed { config: clip.config[key].clone(), tensors: kept.map(named).collect() };
            let folder = tempfile::tempdir().unwrap();
            let source = alone.open(folder.path()).unwrap();
            if key == "vision_config" {
                let image = image("clip", &source);
                let was = towers.images().image_hidden_state(image.view(), &mut scratch).unwrap();
                assert_eq!(states(&source, "clip"), was);
                continue;
            }
            let read = |encoder: &tensorpress_model::Encoder, scratch: &mut Scratch| {
                encoder.last_hidden_state(&ids, &[1; 5], &[0; 5], scratch).unwrap()
            };
            let encoder = source.encoder().unwrap();
            assert_eq!(read(&encoder, &mut scratch), read(towers.texts(), &mut scratch));
            // What comes later is not seen.
            let short =
                encoder.last_hidden_state(&ids[..3], &[1; 3], &[0; 3], &mut scratch).unwrap();
            let long = read(&encoder, &mut scratch);
            let apart = short.iter().zip(&long).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(apart < 1e-5, "{apart}");
            assert!(source.towers().is_err());
        }
    }
}

#[test]
fn old_configs_of_clip_mean_the_greatest_token_by_the_end() {
    let Some(mut clip) = Changed::new("clip") else { return };
    let embed = |clip: &Changed, ids: &[u32]| {
        let folder = tempfile::tempdir().unwrap();
        clip.open(folder.path()).unwrap().towers().unwrap().embed_text(ids, &mut Scratch::default())
    };
    let ids = [5, 98, 2, 40, 98, 7];
    let usual = embed(&clip, &ids).unwrap();
    clip.config["text_config"]["eos_token_id"] = json!(2);
    assert_eq!(embed(&clip, &ids).unwrap(), usual);
    clip.config["text_config"]["eos_token_id"] = json!(40);
    assert_ne!(embed(&clip, &ids).unwrap(), usual);
    clip.config["text_config"]["eos_token_id"] = json!(41);
    assert_eq!(embed(&clip, &ids).unwrap_err().kind(), ErrorKind::InvalidArgument);
}

/// The error of loading a golden model with a changed config.
fn config_error(name: &str, change: impl FnOnce(&mut Value)) -> Option<Error> {
    let mut model = Changed::new(name)?;
    change(&mut model.config);
    let folder = tempfile::tempdir().unwrap();
    let source = model.open(folder.path());
    let error = source.and_then(|source| match name {
        "clip" => source.towers().map(drop),
        "vit" => source.encoder().map(drop),
        _ => source.decoder().map(drop),
    });
    let error = error.unwrap_err();
    assert!(error.file().is_some_and(|file| file.starts_with(folder.path())), "{error}");
    Some(error)
}

#[test]
fn configs_that_contradict_themselves_or_the_weights_are_errors() {
    let huge = json!(1u64 << 40);
    let cases: [(&str, &str, Value, ErrorKind, &str); 17] = [
        ("vit", "/image_size", json!(40), ErrorKind::ShapeMismatch, "position_embeddings"),
        ("vit", "/image_size", huge.clone(), ErrorKind::Corruption, "image_size"),
        ("vit", "/image_size", json!([32, 24]), ErrorKind::Unsupported, "image_size"),
        ("vit", "/image_size", json!([32, 32, 32]), ErrorKind::Unsupported, "image_size"),
        ("vit", "/image_size", json!("32"), ErrorKind::Corruption, "image_size"),
        ("vit", "/patch_size", json!(64), ErrorKind::Corruption, "patch_size"),
        ("vit", "/patch_size", json!(0), ErrorKind::Corruption, "patch_size"),
        ("vit", "/num_channels", json!(1), ErrorKind::ShapeMismatch, "projection.weight"),
        ("clip", "/text_config", Value::Null, ErrorKind::InsufficientData, "text_config"),
        ("clip", "/vision_config", json!(3), ErrorKind::Corruption, "vision_config"),
        ("clip", "/projection_dim", json!(21), ErrorKind::ShapeMismatch, "text_projection"),
        (
            "clip",
            "/text_config/hidden_size",
            json!(48),
            ErrorKind::ShapeMismatch,
            "text_projection",
        ),
        ("mamba", "/state_size", json!(7), ErrorKind::ShapeMismatch, "A_log"),
        ("mamba", "/conv_kernel", huge.clone(), ErrorKind::Corruption, "conv_kernel"),
        ("mamba2", "/n_groups", json!(3), ErrorKind::Corruption, "n_groups"),
        ("mamba2", "/num_heads", json!(4), ErrorKind::Corruption, "num_heads"),
        ("mamba2", "/state_size", json!(1 << 27), ErrorKind::ShapeMismatch, "conv1d"),
    ];
    for (name, key, value, kind, word) in cases {
        let change = |config: &mut Value| *config.pointer_mut(key).unwrap() = value.clone();
        let Some(error) = config_error(name, change) else { return };
        assert_eq!(error.kind(), kind, "{name}, {key} = {value}: {error}");
        assert!(error.to_string().contains(word), "{name}, {key} = {value}: {error}");
    }
}

#[test]
fn images_of_other_sizes_and_broken_ones_are_refused() {
    let Some(folder) = data::find("golden/models/vit") else { return };
    let (encoder, mut scratch) = (open(folder).unwrap().encoder().unwrap(), Scratch::default());
    let mut image = Array3::zeros((3, 32, 32));
    assert!(encoder.image_hidden_state(image.view(), &mut scratch).is_ok());
    let narrow = image.slice(tensorpress_tensor::ndarray::s![.., .., ..24]);
    let error = encoder.image_hidden_state(narrow, &mut scratch).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ShapeMismatch, "{error}");
    image[[1, 2, 3]] = f32::INFINITY;
    let error = encoder.image_hidden_state(image.view(), &mut scratch).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Numerical, "{error}");
}
