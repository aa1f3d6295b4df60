//! Folders that others quantised, seen as folders of ours: every golden layer as a model's folder.

mod official;

use std::sync::Arc;

use official::{bits, files, floats, said, same};
use serde_json::{Value, json};
use tensorpress_formats::gptq::Version;
use tensorpress_formats::{awq, export, import, register, repacked};
use tensorpress_tensor::checkpoint::{Files, Folder, Place, write_header};
use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::node::decode;
use tensorpress_tensor::testing::laws::check_node;
use tensorpress_tensor::{Checkpoint, DType, Node, RawTensor, Registry, Tensor};

fn registry() -> Registry {
    let mut registry = Registry::default();
    register(&mut registry).expect("nothing is there twice");
    registry
}

/// A folder with one layer, whose tensors begin with `from` in a golden file and are called `l.` here; and what comes of
/// it.
struct Seen {
    _folder: tempfile::TempDir,
    files: Arc<dyn Files>,
    checkpoint: Checkpoint,
}

type Stored = (String, String, Vec<usize>, Vec<u8>);

fn folder(tensors: &[Stored], quantization: &Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let config = json!({"model_type": "llama", "quantization_config": quantization});
    std::fs::write(folder.path().join("config.json"), config.to_string()).expect("written");
    let mut at = 0;
    let places = tensors.iter().map(|(name, dtype, shape, bytes)| {
        let range = at..at + bytes.len() as u64;
        at = range.end;
        (name.as_str(), Place { dtype: dtype.as_str(), shape, range })
    });
    let mut file = write_header(&Default::default(), places);
    tensors.iter().for_each(|(.., bytes)| file.extend_from_slice(bytes));
    std::fs::write(folder.path().join("model.safetensors"), file).expect("written");
    folder
}

fn stored(file: &Checkpoint, from: &str, to: &str) -> Vec<Stored> {
    let names = file.names().filter_map(|name| Some((name, name.strip_prefix(from)?)));
    names
        .map(|(name, rest)| {
            let shape = file.shape(name).expect("there").to_vec();
            let dtype = file.dtype_name(name).expect("there").to_owned();
            let bytes = file.bytes(name).expect("bytes").to_vec();
            (format!("{to}{rest}"), dtype, shape, bytes)
        })
        .collect()
}

fn seen(tensors: &[Stored], quantization: &Value) -> Seen {
    let made = folder(tensors, quantization);
    let files = import::as_ours(Arc::new(Folder::new(made.path()))).expect("a folder");
    let checkpoint = Checkpoint::open_in(&*files).expect("weights");
    Seen { _folder: made, files, checkpoint }
}

impl Seen {
    fn node(&self) -> Box<dyn Node> {
        let trees = self.checkpoint.trees().expect("trees");
        let (name, tree) = trees.iter().next().expect("a tree");
        assert_eq!((trees.len(), name.as_str()), (1, "l.weight"));
        registry().read(tree, name, &self.checkpoint).expect("a node")
    }

    /// The node, after the laws were checked on it and on what is left when its codes are packed anew.
    fn lawful(&self, what: &str) -> Box<dyn Node> {
        let node = self.node();
        let values = decode(&*node).expect("decodes");
        check_node(node, &registry(), 2e-5);
        let packed = repacked(self.node()).expect("packs");
        assert!(!packed.describe().to_string().contains("words.v1"), "{what}");
        assert!(bits(&decode(&*packed).expect("decodes")) == bits(&values), "{what}: repacked");
        check_node(packed, &registry(), 2e-5);
        let config: Value =
            serde_json::from_slice(&self.files.read("config.json").expect("there")).expect("JSON");
        assert!(config.get("quantization_config").is_none(), "{what}");
        self.node()
    }
}

fn rounded(values: Array2<f32>, dtype: DType) -> Vec<u32> {
    values.iter().map(|value| dtype.round(*value).to_bits()).collect()
}

fn layer(parts: export::Stored) -> Vec<(String, RawTensor)> {
    parts.into_iter().map(|(part, tensor)| (part.to_owned(), tensor)).collect()
}

/// That an export gave the tensors of the file, every one, to the bit.
fn same_layer(ours: Vec<(String, RawTensor)>, file: &Checkpoint, from: &str, what: &str) {
    let theirs = stored(file, from, "").len();
    assert_eq!(ours.len(), theirs, "{what}");
    for (part, tensor) in ours {
        same(&tensor, &file.tensor(&format!("{from}{part}")).expect("there"), &part);
    }
}

#[test]
fn gptq_layers_are_nodes_and_back() {
    let mut checked = 0;
    for (prefix, version, format) in
        [("gptq_v1", Version::V1, "gptq"), ("gptq_v2", Version::V2, "gptq_v2")]
    {
        let Some(files) = files(prefix) else { return };
        for (name, file) in &files {
            let bits_of: u64 = said(file, "bits").parse().expect("a number");
            let group: i64 = said(file, "group_size").parse().expect("a number");
            let quantization = json!({
                "quant_method": "gptq", "bits": bits_of, "group_size": group,
                "checkpoint_format": format,
            });
            let seen = seen(&stored(file, "ckpt.", "l."), &quantization);
            let node = seen.lawful(name);
            let official = floats(file, "out.weight_in_by_out").reversed_axes();
            let official = official.as_standard_layout().into_owned();
            let ours = decode(&*node).expect("decodes");
            assert!(rounded(ours, DType::F16) == bits(&official), "{name}: weights");
            same_layer(layer(export::gptq(&*node, version).expect("holds")), file, "ckpt.", name);
            let again = repacked(node).expect("packs");
            same_layer(layer(export::gptq(&*again, version).expect("holds")), file, "ckpt.", name);
            checked += 1;
        }
    }
    println!("checked: gptq folders {checked}");
    assert_eq!(checked, 12, "golden files are missing");
}

#[test]
fn awq_layers_are_nodes_and_back() {
    let mut checked = 0;
    for (prefix, version, layout) in [
        ("awq_gemm", "gemm", Some(awq::Layout::Gemm)),
        ("awq_gemv_", "gemv", Some(awq::Layout::Gemv)),
        ("awq_gemvfast", "gemv_fast", None),
    ] {
        let Some(files) = files(prefix) else { return };
        for (name, file) in &files {
            let group = if name.contains("g128") { 128 } else { 64 };
            let quantization = json!({
                "quant_method": "awq", "bits": 4, "group_size": group, "version": version,
            });
            let seen = seen(&stored(file, "ckpt.", "l."), &quantization);
            let node = seen.lawful(name);
            let layer_of = awq::Layer::read(file, "ckpt").expect("a layer");
            let form = layout.unwrap_or(awq::Layout::GemvFast);
            let wanted = layer_of.unpack(form, group).and_then(|l| l.decode(DType::F32));
            let wanted = wanted.expect("an official layer");
            let ours = decode(&*node).expect("decodes");
            assert!(bits(&ours) == bits(&wanted), "{name}: weights");
            if let Some(layout) = layout {
                let made = export::awq(&*repacked(node).expect("packs"), layout).expect("holds");
                same_layer(layer(made), file, "ckpt.", name);
            }
            checked += 1;
        }
    }
    println!("checked: awq folders {checked}");
    assert_eq!(checked, 6, "golden files are missing");
}

fn scheme(bits: u8, kind: &str, block: Value) -> Value {
    json!({
        "quant_method": "compressed-tensors", "version": "0.20.0",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {
            "num_bits": bits, "type": kind, "block_structure": block,
        }}},
    })
}

#[test]
fn compressed_tensors_are_nodes_and_back() {
    let mut checked = Vec::new();
    let Some(all) = files("ct_") else { return };
    for (name, file) in &all {
        let digits = |at: usize| name[at..=at].parse().expect("a number");
        let (quantization, dtype) = match name.as_str() {
            name if name.starts_with("ct_pack_w") => (scheme(digits(9), "int", Value::Null), None),
            name if name.starts_with("ct_int8") => (scheme(8, "int", Value::Null), None),
            name if name.starts_with("ct_fp8_block") => {
                (scheme(8, "float", json!([128, 128])), None)
            }
            name if name.starts_with("ct_fp8") => (scheme(8, "float", Value::Null), None),
            name if name.starts_with("ct_mxfp") || name.starts_with("ct_nvfp") => {
                (scheme(4, "float", Value::Null), Some(DType::BF16))
            }
            _ => continue,
        };
        let seen = seen(&stored(file, "ckpt.", "l."), &quantization);
        let node = seen.lawful(name);
        let scales = file.dtype("ckpt.weight_scale").unwrap_or(DType::BF16);
        let ours = decode(&*node).expect("decodes");
        let official = floats(file, "out.weight");
        assert!(rounded(ours, dtype.unwrap_or(scales)) == bits(&official), "{name}: weights");
        if name.starts_with("ct_pack_w") {
            let symmetric = !name.contains("asym");
            let node = repacked(node).expect("packs");
            let made = export::compressed_tensors(&*node, digits(9), symmetric).expect("holds");
            same_layer(layer(made), file, "ckpt.", name);
        }
        checked.push(name.as_str());
    }
    println!("checked: compressed-tensors folders {}: {}", checked.len(), checked.join(", "));
    assert_eq!(checked.len(), 8 + 2 + 3 + 4, "golden files are missing");
}

#[test]
fn sparse_and_marlin_layers_are_nodes() {
    let (Some(any), Some(half), Some(marlin)) =
        (files("ct_sparse_bitmask"), files("ct_sparse24"), files("ct_marlin24"))
    else {
        return;
    };
    for (from, (name, file)) in
        any.iter().map(|f| ("layer.", f)).chain(half.iter().map(|f| ("layer.", f)))
    {
        let seen = seen(&stored(file, from, "l."), &scheme(8, "int", Value::Null));
        let values = decode(&*seen.lawful(name)).expect("decodes");
        // Minus zeros are none of the kept.
        assert!(values == floats(file, "in"), "{name}");
    }
    for (name, file) in &marlin {
        let width = if name.contains("w4") { 4 } else { 8 };
        let seen = seen(&stored(file, "layer.", "l."), &scheme(width, "int", Value::Null));
        let values = decode(&*seen.lawful(name)).expect("decodes");
        let layer = tensorpress_formats::compressed_tensors::Marlin24::read(file, "layer");
        let wanted = layer.and_then(|l| l.unpack(width)).and_then(|i| i.decode(DType::F32));
        assert!(bits(&values) == bits(&wanted.expect("a layer")), "{name}");
    }
    println!("checked: sparse folders {}, marlin-24 {}", any.len() + half.len(), marlin.len());
    assert_eq!((any.len(), half.len(), marlin.len()), (1, 1, 4));
}

#[test]
fn bits_and_bytes_are_nodes_and_back() {
    let mut checked = 0;
    for kind in ["nf4", "fp4"] {
        let Some(files) = files(&format!("bnb_{kind}")) else { return };
        let (name, file) = &files[0];
        let state = format!("quant_state.bitsandbytes__{kind}");
        let mut tensors = stored(file, "qstate.", "l.weight.");
        let (_, dtype, shape, bytes) =
            stored(file, "dq64.packed", "l.weight").into_iter().next().expect("there");
        tensors.push(("l.weight".into(), dtype, shape, bytes));
        let seen = seen(&tensors, &json!({"quant_method": "bitsandbytes", "load_in_4bit": true}));
        let node = seen.lawful(name);
        let ours = decode(&*node).expect("decodes");
        let official = file.tensor("dq64.dequant").and_then(|t| t.to_matrix()).expect("floats");
        let flat = |values: &Array2<f32>| values.iter().map(|v| v + 0.0).collect::<Vec<f32>>();
        assert!(flat(&ours) == flat(&official), "{name}: weights");
        let said: Value =
            serde_json::from_slice(&file.bytes(&format!("qstate.{state}")).expect("there"))
                .expect("JSON");
        let dtype = match said["dtype"].as_str() {
            Some("float16") => DType::F16,
            Some("bfloat16") => DType::BF16,
            _ => DType::F32,
        };
        let made = export::bits_and_bytes(&*repacked(node).expect("packs"), dtype).expect("holds");
        for (part, tensor) in made {
            let theirs = match part {
                "" => "dq64.packed".to_owned(),
                part => format!("qstate.{part}"),
            };
            same(&tensor, &file.tensor(&theirs).expect("there"), &theirs);
        }
        checked += 1;
    }
    let Some(files) = files("bnb_8bit") else { return };
    let (name, file) = &files[0];
    let mut tensors = stored(file, "llmint8.q", "l.weight");
    tensors.extend(stored(file, "llmint8.row_stats", "l.SCB"));
    assert_eq!(tensors.len(), 2, "{name}");
    let seen = seen(&tensors, &json!({"quant_method": "bitsandbytes", "load_in_8bit": true}));
    let node = seen.lawful(name);
    let read = tensorpress_formats::bnb::Int8::read(
        &Checkpoint::open(seen._folder.path()).expect("opens"),
        "l",
    );
    let wanted = read.and_then(|int8| int8.decode(DType::F32)).expect("a layer");
    assert!(bits(&decode(&*node).expect("decodes")) == bits(&wanted), "{name}");
    println!("checked: bitsandbytes folders {}", checked + 1);
    assert_eq!(checked, 2);
}

/// What is wrong is said, and where.
#[test]
fn folders_that_contradict_themselves() {
    let words = |n: usize| vec![0u8; 4 * n];
    let tensor = |name: &str, dtype: &str, shape: &[usize], bytes: Vec<u8>| {
        (format!("l.{name}"), dtype.to_owned(), shape.to_vec(), bytes)
    };
    let good = || {
        vec![
            tensor("qweight", "I32", &[4, 8], words(32)),
            tensor("qzeros", "I32", &[1, 1], words(1)),
            tensor("scales", "F16", &[1, 8], vec![0; 16]),
        ]
    };
    let gptq = |bits: u8| json!({"quant_method": "gptq", "bits": bits, "group_size": 32});
    let try_open = |tensors: &[Stored], quantization: &Value| -> Result<(), String> {
        let made = folder(tensors, quantization);
        let files =
            import::as_ours(Arc::new(Folder::new(made.path()))).map_err(|e| e.to_string())?;
        let checkpoint = Checkpoint::open_in(&*files).map_err(|e| e.to_string())?;
        for (name, tree) in checkpoint.trees().map_err(|e| e.to_string())? {
            let node = registry().read(&tree, &name, &checkpoint).map_err(|e| e.to_string())?;
            decode(&*node).map_err(|e| e.to_string())?;
        }
        Ok(())
    };
    try_open(&good(), &gptq(4)).expect("a layer");
    for (quantization, words) in [
        (json!({"quant_method": "gptq", "bits": 5}), "`bits` = 5"),
        (json!({"quant_method": "gptq"}), "bits"),
        (json!({"quant_method": "gptq", "bits": 4, "checkpoint_format": "x"}), "checkpoint_format"),
        (json!({"quant_method": "awq", "version": "x"}), "`version`"),
        (json!({"quant_method": "exl9"}), "quant_method"),
    ] {
        let error = try_open(&good(), &quantization).expect_err("not known");
        assert!(error.contains(words) && error.contains("config.json"), "{error}");
    }
    for (at, shape) in [(0, vec![8usize, 8]), (1, vec![2, 1]), (2, vec![2, 8]), (2, vec![8])] {
        let mut tensors = good();
        let size = if at == 2 { 2 } else { 4 };
        tensors[at].2 = shape.clone();
        tensors[at].3 = vec![0; shape.iter().product::<usize>() * size];
        let found = try_open(&tensors, &gptq(4));
        let error = found.expect_err(&format!("{} of {shape:?}", tensors[at].0));
        assert!(error.contains("l."), "{error}");
    }
    for at in 0..3 {
        let mut tensors = good();
        let name = tensors.remove(at).0;
        let found = try_open(&tensors, &gptq(4));
        // Without the part that names it, there is no layer.
        assert!(at == 0 || found.as_ref().is_err_and(|e| e.contains(&name)), "{name}: {found:?}");
    }
}
