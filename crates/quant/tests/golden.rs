//! Vectors made by the official implementations: codes and output errors must agree.

use std::sync::Arc;

use tensorpress_quant::{Awq, AwqClip, Clip, ColumnLevels, Gptq, GridSpec, Rtn, Span};
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::node::{Scale, Side, Transformed, decode};
use tensorpress_tensor::stats::Calibration;
use tensorpress_tensor::testing::golden::{Golden, Layer};
use tensorpress_tensor::{Checkpoint, Compress, DType, Fold, Group, Node, Target};

/// What the files of quantisers have.
trait Quantised {
    fn codes(&self) -> Array2<f32>;
    /// The group of each column.
    fn g_idx(&self) -> Vec<usize>;
    /// The official result, rebuilt from its stored tensors.
    fn official(&self) -> Array2<f32>;
    fn grid(&self, bits: &str, group: &str) -> GridSpec;
    fn check(&self, node: &dyn Node, agreement: f64);
}

impl Quantised for Golden {
    fn codes(&self) -> Array2<f32> {
        self.floats("codes")
    }

    fn g_idx(&self) -> Vec<usize> {
        if self.file.contains("g_idx") {
            return self.floats("g_idx").iter().map(|g| *g as usize).collect();
        }
        let (cols, groups) = (self.layer.weight.ncols(), self.floats("scale").ncols());
        (0..cols).map(|c| c / cols.div_ceil(groups)).collect()
    }

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
        let back = Arc::new(Scale::new(s.iter().map(|s| 1.0 / s).collect(), DType::F32).unwrap());
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

/// BAQ's second pass: the codes that its levels of each column lead to. Files without the official weights are for its
/// allocation.
#[test]
fn column_levels_match_official_codes() {
    let Some(files) = Golden::all("baq") else { return };
    let mut checked = 0;
    for golden in files.iter().filter(|golden| golden.file.contains("Wq")) {
        let levels: Vec<u32> =
            golden.floats("levels_per_column").iter().map(|l| *l as u32).collect();
        let block = golden.param("blocksize").as_u64().unwrap() as usize;
        let damp = golden.param("percdamp").as_f64().unwrap() as f32;
        let method = ColumnLevels::new(levels.clone()).with_damp(damp).with_block(block);
        let calibration = Calibration::from_gram(golden.layer.gram.clone(), 1).unwrap();
        let weight = &golden.layer.weight;
        let made = method.compress(weight.view(), &calibration).unwrap();
        assert_eq!(made.fallback, None, "{}", golden.name);
        let (ours, official) = (decode(&made.node).unwrap(), golden.floats("Wq"));
        let mut equal = 0;
        for ((r, c), theirs) in official.indexed_iter() {
            let row = weight.row(r);
            let (low, high) = row.iter().fold((0.0f32, 0.0f32), |(l, h), w| (l.min(*w), h.max(*w)));
            let step = (high - low) / (levels[c] as f32 - 1.0 + 1e-8);
            let code = |value: f32| if levels[c] == 1 { 0.0 } else { (value / step).round() };
            equal += usize::from(code(*theirs) == code(ours[[r, c]]));
        }
        let equal = equal as f64 / official.len() as f64;
        let [ours, theirs] = [&ours, &official].map(|made| golden.layer.output_error(made.view()));
        println!(
            "{}: output error {ours:.6} (official {theirs:.6}), codes equal {equal:.6}",
            golden.name
        );
        let stated = golden.figure("output_rel_err").unwrap();
        assert!((theirs / stated - 1.0).abs() < 1e-3, "{}: the vector's own figure", golden.name);
        assert!((ours / theirs - 1.0).abs() <= 1e-3, "{}: {ours} {theirs}", golden.name);
        assert!(equal > 0.999, "{}: codes equal {equal}", golden.name);
        checked += 1;
    }
    println!("golden files checked: baq {checked}");
    assert!(checked >= 2, "golden vectors are missing");
}
