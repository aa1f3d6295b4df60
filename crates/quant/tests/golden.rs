//! Vectors made by the official implementations: codes and output errors must agree.

use std::collections::BTreeMap;
use std::path::Path;

use tensorpress_quant::{Awq, AwqClip, Clip, Gptq, GridSpec, Rtn, Span};
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::{Array2, ArrayView2};
use tensorpress_tensor::node::{Side, Transform, Transformed, decode};
use tensorpress_tensor::stats::Calibration;
use tensorpress_tensor::testing::data;
use tensorpress_tensor::{
    Checkpoint, Compress, DType, Fold, Group, Node, RawTensor, Target, Tensor,
};

/// One golden file with the layer it belongs to.
struct Golden {
    name: String,
    file: Checkpoint,
    layer: Layer,
}

#[derive(Clone)]
struct Layer {
    weight: Array2<f32>,
    x: Array2<f32>,
    gram: Array2<f32>,
}

impl Layer {
    fn read(folder: &Path, name: &str) -> Self {
        let file = Checkpoint::open(folder.join(format!("layer_{name}.safetensors"))).unwrap();
        let matrix = |name: &str| file.tensor(name).unwrap().to_matrix().unwrap();
        let x = matrix("X");
        let gram = if file.contains("H") { matrix("H") } else { exact_gram(x.view()) };
        Self { weight: matrix("W"), x, gram }
    }

    /// ||X (W - Q)ᵀ|| / ||X Wᵀ|| in f64.
    fn output_error(&self, quantised: ArrayView2<'_, f32>) -> f64 {
        let x = self.x.mapv(f64::from);
        let w = self.weight.mapv(f64::from);
        let d = &w - &quantised.mapv(f64::from);
        let norm = |m: &Array2<f64>| m.iter().map(|v| v * v).sum::<f64>().sqrt();
        norm(&x.dot(&d.t())) / norm(&x.dot(&w.t()))
    }
}

fn exact_gram(x: ArrayView2<'_, f32>) -> Array2<f32> {
    let x = x.mapv(f64::from);
    x.t().dot(&x).mapv(|v| v as f32)
}

impl Golden {
    fn all(method: &str) -> Option<Vec<Self>> {
        let files = data::golden_weights(method)?;
        let read = |path: &std::path::PathBuf| {
            let file = Checkpoint::open(path).unwrap();
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            let layer = file.metadata().next().unwrap()["layer"].clone();
            Self { name, layer: Layer::read(path.parent().unwrap(), &layer), file }
        };
        Some(files.iter().map(read).collect())
    }

    fn meta(&self) -> &BTreeMap<String, String> {
        self.file.metadata().next().unwrap()
    }

    fn figure(&self, key: &str) -> Option<f64> {
        self.meta().get(key).map(|v| v.parse().unwrap())
    }

    fn param(&self, key: &str) -> serde_json::Value {
        let params: serde_json::Value = serde_json::from_str(&self.meta()["params"]).unwrap();
        params.get(key).cloned().unwrap_or(serde_json::Value::Null)
    }

    fn flag(&self, key: &str) -> bool {
        self.param(key).as_bool().unwrap_or(false)
    }

    fn floats(&self, name: &str) -> Array2<f32> {
        let tensor = self.file.tensor(name).unwrap();
        if tensor.dtype().is_float() { tensor.to_matrix().unwrap() } else { ints(&tensor) }
    }

    fn codes(&self) -> Array2<f32> {
        ints(&self.file.tensor("codes").unwrap())
    }

    /// The group of each column.
    fn g_idx(&self) -> Vec<usize> {
        if self.file.contains("g_idx") {
            return self.floats("g_idx").iter().map(|g| *g as usize).collect();
        }
        let (cols, groups) = (self.layer.weight.ncols(), self.floats("scale").ncols());
        (0..cols).map(|c| c / cols.div_ceil(groups)).collect()
    }

    /// The official result, rebuilt from its stored tensors.
    fn official(&self) -> Array2<f32> {
        let (codes, scale, zero) = (self.codes(), self.floats("scale"), self.floats("zero"));
        let g_idx = self.g_idx();
        let back = self.file.contains("awq_scales").then(|| self.floats("awq_scales"));
        Array2::from_shape_fn(codes.dim(), |(r, c)| {
            let w = scale[[r, g_idx[c]]] * (codes[[r, c]] - zero[[r, g_idx[c]]]);
            back.as_ref().map_or(w, |s| w / s[[0, c]])
        })
    }

    fn grid(&self, bits: &str, group: &str) -> GridSpec {
        let bits = self.param(bits).as_u64().unwrap() as u8;
        let group = self.param(group).as_i64().unwrap_or(-1).max(0) as usize;
        let clip = if self.flag("mse") { Clip::Power2p4 } else { Clip::MinMax };
        GridSpec::new(bits, group)
            .with_symmetric(self.flag("sym"))
            .with_clip(clip)
            .with_scale(DType::F32)
    }

    /// Output error within 1% of the official one; codes equal up to what the official code reaches between f32
    /// and f64, less 0.2%. Codes are read off the decoded values on the official grid.
    fn check(&self, node: &dyn Node, agreement: f64) {
        let official = self.official();
        let decoded = decode(node).unwrap();
        let ours = self.layer.output_error(decoded.view());
        let theirs = self.layer.output_error(official.view());
        let (scale, zero, g_idx) = (self.floats("scale"), self.floats("zero"), self.g_idx());
        let back = self.file.contains("awq_scales").then(|| self.floats("awq_scales"));
        let codes = self.codes();
        let equal = codes.indexed_iter().filter(|((r, c), code)| {
            let w = decoded[[*r, *c]] * back.as_ref().map_or(1.0, |s| s[[0, *c]]);
            (w / scale[[*r, g_idx[*c]]] + zero[[*r, g_idx[*c]]]).round() == **code
        });
        let equal = equal.count() as f64 / decoded.len() as f64;
        println!(
            "{}: output error {ours:.6} (official {theirs:.6}), codes equal {equal:.6}",
            self.name
        );
        if let Some(stated) = self.figure("output_rel_err") {
            assert!((theirs / stated - 1.0).abs() < 1e-3, "{}: the vector's own figure", self.name);
        }
        assert!(
            (ours / theirs - 1.0).abs() <= 0.01,
            "{}: output error {ours} vs {theirs}",
            self.name
        );
        assert!(
            equal >= agreement - 0.002,
            "{}: codes equal {equal}, asked {agreement}",
            self.name
        );
    }
}

fn ints(tensor: &RawTensor) -> Array2<f32> {
    let [rows, cols] = tensor.matrix_shape();
    let values = match tensor.dtype() {
        DType::I8 => tensor.bytes().iter().map(|b| f32::from(*b as i8)).collect(),
        DType::I32 => tensor
            .bytes()
            .chunks_exact(4)
            .map(|b| i32::from_le_bytes(b.try_into().unwrap()) as f32)
            .collect(),
        other => panic!("{other:?}"),
    };
    Array2::from_shape_vec((rows, cols), values).unwrap()
}

#[test]
fn rtn_matches_official_codes() {
    let Some(files) = Golden::all("rtn") else { return };
    for golden in &files {
        let method = Rtn::new(golden.grid("bits", "groupsize"));
        let node = method.round(&Target::new("w", golden.layer.weight.view()), Par::Seq).unwrap();
        golden.check(&node, 1.0);
    }
    println!("golden files checked: rtn {}", files.len());
    assert!(files.len() >= 5, "golden vectors are missing");
}

#[test]
fn gptq_matches_official_codes() {
    let Some(files) = Golden::all("gptq") else { return };
    for golden in &files {
        let mut gram = golden.layer.gram.clone();
        let mut layer_x = golden.layer.x.clone();
        if golden.file.contains("dead") {
            for &dead in golden.floats("dead").iter() {
                gram.row_mut(dead as usize).fill(0.0);
                gram.column_mut(dead as usize).fill(0.0);
                layer_x.column_mut(dead as usize).fill(0.0);
            }
        }
        let damp = golden.param("percdamp").as_f64().unwrap_or(0.01) as f32;
        let block = golden.param("blocksize").as_u64().unwrap_or(128) as usize;
        let method = Gptq::new(golden.grid("bits", "groupsize"))
            .with_act_order(golden.flag("actorder"))
            .with_static_groups(golden.flag("static_groups"))
            .with_damp(damp)
            .with_block(block);
        let calibration = Calibration::from_gram(gram, 1024).unwrap();
        let result = method.compress(golden.layer.weight.view(), &calibration).unwrap();
        assert_eq!(result.fallback, None, "{}", golden.name);
        let golden = Golden {
            name: golden.name.clone(),
            file: Checkpoint::open(golden.file.files().next().unwrap()).unwrap(),
            layer: Layer { x: layer_x, ..golden.layer.clone() },
        };
        golden.check(&*result.node, golden.figure("f64_code_agreement").unwrap_or(1.0));
    }
    println!("golden files checked: gptq {}", files.len());
    assert!(files.len() >= 31, "golden vectors are missing");
}

#[test]
fn awq_matches_official_codes() {
    let Some(files) = Golden::all("awq") else { return };
    for golden in &files {
        let grid = golden.grid("w_bit", "q_group_size").with_range(Span::Tight);
        let clip = if golden.file.contains("clip_max") { AwqClip::Output } else { AwqClip::Off };
        let method = Awq::new(grid).with_clip(clip);
        let calibration = Calibration::from_samples(golden.layer.x.clone(), Par::Seq);
        let target = Target::new("w", golden.layer.weight.view());
        let (scale, losses) = method.search(&[target], &calibration, Par::Seq).unwrap();
        if golden.file.contains("losses") {
            for (i, (ours, official)) in losses.iter().zip(&golden.floats("losses")).enumerate() {
                let error = (ours / f64::from(*official) - 1.0).abs();
                assert!(error < 0.01, "{}: loss of ratio {i}: {ours} vs {official}", golden.name);
            }
        }
        for (ours, official) in scale.iter().zip(&golden.floats("awq_scales")) {
            assert!((ours / official - 1.0).abs() < 1e-6, "{}: {ours} vs {official}", golden.name);
        }
        // From the official scales on, so that the last bit of ours decides no tie: a range clipped on both sides
        // has its zero exactly between two codes. Ratio 0 alone searches no scale.
        let s = golden.floats("awq_scales");
        let weight = &golden.layer.weight * &s;
        let calibration = Calibration::from_samples(&golden.layer.x / &s, Par::Seq);
        let ones = vec![1.0; s.len()];
        let mut group = Group::single(Target::new("w", weight.view()), calibration);
        group.fold = Some(Fold { values: &ones, dtype: DType::F32 });
        let result = method.with_ratios(1).compress_group(group).unwrap();
        assert_eq!(result.folded, Some(ones.clone()));
        let inner = result.layers.into_iter().next().unwrap().node;
        let back = Transform::scale(s.iter().map(|s| 1.0 / s).collect(), DType::F32).unwrap();
        golden.check(&Transformed::new(Side::In, back, inner).unwrap(), 1.0);

        // And from the search on: the same quality.
        let calibration = Calibration::from_samples(golden.layer.x.clone(), Par::Seq);
        let whole =
            Awq::new(grid).with_clip(clip).compress(golden.layer.weight.view(), &calibration);
        let ours = golden.layer.output_error(decode(&whole.unwrap().node).unwrap().view());
        let official = golden.layer.output_error(golden.official().view());
        println!("{}: from the search on {ours:.6} (official {official:.6})", golden.name);
        assert!((ours / official - 1.0).abs() < 0.01, "{}: {ours} vs {official}", golden.name);
    }
    println!("golden files checked: awq {}", files.len());
    assert!(files.len() >= 7, "golden vectors are missing");
}
