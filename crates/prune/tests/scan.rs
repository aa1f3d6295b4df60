//! Heads of state-space layers: scores against outputs that are made, who goes, and which rows of which tensor.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tensorpress_prune::DropScanHeads;
use tensorpress_tensor::linalg::{Par, gaussian};
use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::rewrite::{
    BlockLayout, BlockShape, BlockView, Change, Edit, LinearSpec, ModelLayout, Role, ScanLayout,
    SharedInput,
};
use tensorpress_tensor::stats::{Calibration, Collector};
use tensorpress_tensor::{DType, ErrorKind, Method, RawTensor, Rewrite, Tensor};

const HIDDEN: usize = 5;

/// One block: heads, their width, groups, and 3 values of state.
fn model(heads: usize, width: usize, groups: usize) -> ModelLayout {
    let inner = heads * width;
    let wide = 2 * inner + 2 * groups * 3 + heads;
    let linears = vec![
        LinearSpec::new(Role::ScanIn, "in.weight", [wide, HIDDEN]),
        LinearSpec::new(Role::ScanOut, "out.weight", [HIDDEN, inner]),
    ];
    let scan = ScanLayout::new(heads, width, groups, 3, "in.weight", "out.weight").with_tensors(
        vec!["conv.weight".to_owned(), "conv.bias".to_owned()],
        vec!["decay".to_owned(), "past".to_owned()],
        Some("norm.weight".to_owned()),
    );
    let block = BlockLayout::new(0, "", BlockShape::new(0, 0, inner), linears);
    ModelLayout::new("Mamba2", HIDDEN, 0, vec![block.with_scan(Some(scan))]).with_editable(false)
}

fn matrix(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    Array2::from_shape_fn((rows, cols), |(i, j)| gaussian(seed, (i * cols + j) as u64) as f32)
}

fn stored(matrix: &Array2<f32>, shape: &[usize]) -> RawTensor {
    let mut bytes = Vec::new();
    DType::F32.write_f32(matrix.as_slice().unwrap(), &mut bytes).unwrap();
    RawTensor::new(DType::F32, shape.to_vec(), bytes.into()).unwrap()
}

fn inputs(x: &Array2<f32>) -> BTreeMap<SharedInput, Calibration> {
    let mut collector = Collector::new(HIDDEN, DropScanHeads::default().needs(), 0);
    collector.update(x.view(), Par::Seq);
    BTreeMap::from([(SharedInput::Scan, collector.finish())])
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    /// Fails where heads are compared across groups: then a group of low scores loses more than the others. Fails where
    /// channels are chosen head by head, or heads before channels.
    #[test]
    fn every_group_loses_as_many_and_the_lowest(
        groups in 1usize..4, each in 1usize..5, width in 1usize..6, seed in any::<u64>(),
        heads_gone in 0.0f64..0.99, channels_gone in 0.0f64..0.99,
    ) {
        let heads = groups * each;
        let scores: Vec<f64> = (0..heads * width).map(|i| {
            // Those of the first group are far below all others.
            gaussian(seed, i as u64).abs() * if i < each * width { 1e-3 } else { 1.0 }
        }).collect();
        let rewrite = DropScanHeads::default().with_heads(heads_gone).with_channels(channels_gone);
        let (kept, channels) = rewrite.kept(&scores, heads, groups);
        let stay = |count: usize, share: f64| count - (count as f64 * share) as usize;
        prop_assert_eq!(channels.len(), stay(width, channels_gone));
        let square = |head: usize, channel: usize| scores[head * width + channel].powi(2);
        let of_channel = |c: usize| (0..heads).map(|h| square(h, c)).sum::<f64>();
        for gone in (0..width).filter(|c| !channels.contains(c)) {
            prop_assert!(channels.iter().all(|c| of_channel(*c) >= of_channel(gone)));
        }
        let of_head = |h: usize| channels.iter().map(|c| square(h, *c)).sum::<f64>();
        for group in 0..groups {
            let all = group * each..(group + 1) * each;
            let stays: Vec<usize> = kept.iter().copied().filter(|h| all.contains(h)).collect();
            prop_assert_eq!(stays.len(), stay(each, heads_gone));
            for gone in all.filter(|h| !kept.contains(h)) {
                prop_assert!(stays.iter().all(|h| of_head(*h) >= of_head(gone)));
            }
        }
        prop_assert!(kept.windows(2).all(|pair| pair[0] < pair[1]));
    }

    #[test]
    fn scores_are_norms_of_what_the_matrix_makes(
        tokens in 1usize..30, heads in 1usize..4, width in 1usize..4, seed in any::<u64>(),
        biased in any::<bool>(),
    ) {
        let model = model(heads, width, 1);
        let inner = heads * width;
        let (weight, x) = (matrix(2 * inner + 6 + heads, HIDDEN, seed), matrix(tokens, HIDDEN, seed ^ 1));
        let bias = matrix(1, weight.nrows(), seed ^ 2);
        let mut tensors = BTreeMap::from([("in.weight".to_owned(), stored(&weight, weight.shape()))]);
        if biased {
            tensors.insert("in.bias".to_owned(), stored(&bias, &[weight.nrows()]));
        }
        let seen = inputs(&x);
        let view = BlockView::new(&model.blocks[0], &tensors).with_inputs(&seen);
        let judgement = DropScanHeads::default().judge(&model, &view).unwrap();
        prop_assert!(judgement.notes().is_empty());
        let scores = judgement.values("scores").unwrap();
        prop_assert_eq!(scores.len(), inner);
        for (channel, score) in scores.iter().enumerate() {
            // The rows of x come behind those of the gate.
            let row = inner + channel;
            let output = |token: usize| {
                let dot: f64 = (0..HIDDEN)
                    .map(|i| f64::from(x[[token, i]]) * f64::from(weight[[row, i]])).sum();
                dot + if biased { f64::from(bias[[0, row]]) } else { 0.0 }
            };
            let mean = (0..tokens).map(|t| output(t).powi(2)).sum::<f64>() / tokens as f64;
            prop_assert!((score - mean.sqrt()).abs() < 1e-3 * mean.sqrt().max(0.1), "{} {}", score, mean.sqrt());
        }
    }
}

#[test]
fn every_tensor_is_cut_alike() {
    // 4 heads of 2 channels in 2 groups: gates 0..8, channels 8..16, B 16..22, C 22..28, steps 28..32.
    let model = model(4, 2, 2);
    let layout = &model.blocks[0];
    let norm = matrix(1, 8, 3);
    let tensors = BTreeMap::from([("norm.weight".to_owned(), stored(&norm, &[8]))]);
    let rewrite = DropScanHeads::default().with_heads(0.5).with_channels(0.5);
    let decision = tensorpress_tensor::rewrite::Decision::new()
        .with_kept("heads", vec![1, 2])
        .with_kept("channels", vec![1]);
    let view = BlockView::new(layout, &tensors);
    let edit = rewrite.edit(&model, &view, &Default::default(), &decision).unwrap();
    assert_eq!(edit.shape(), Some(&BlockShape::new(0, 0, 2).with_scan(2, 2)));
    let kept = |name: &str| match &edit.changes()[name] {
        Change::Rows(kept) | Change::Columns(kept) => kept.clone(),
        other => panic!("{other:?}"),
    };
    let shared: Vec<usize> = (16..28).collect();
    assert_eq!(kept("in.weight"), [vec![3, 5, 11, 13], shared, vec![29, 30]].concat());
    assert_eq!(kept("in.bias"), kept("in.weight"));
    let convolved: Vec<usize> = [3, 5].into_iter().chain(8..20).collect();
    assert_eq!((kept("conv.weight"), kept("conv.bias")), (convolved.clone(), convolved));
    assert_eq!((kept("decay"), kept("past")), (vec![1, 2], vec![1, 2]));
    assert_eq!(kept("out.weight"), [3, 5]);
    let Change::New(new) = &edit.changes()["norm.weight"] else { panic!("no norm") };
    // The norm is over a quarter of the channels: twice the weight.
    assert_eq!(
        new.to_matrix().unwrap(),
        tensorpress_tensor::ndarray::array![[2.0 * norm[[0, 3]], 2.0 * norm[[0, 5]]]]
    );
    // Nothing goes, nothing changes.
    let all = rewrite.kept(&[1.0; 8], 4, 2);
    assert_eq!((all.0.len(), all.1.len()), (2, 1));
    let edit = Edit::scan(layout, &[0, 1, 2, 3], &[0, 1]).unwrap();
    assert!(edit.changes().is_empty());
}

#[test]
fn what_cannot_be_is_refused_and_what_is_not_known_is_said() {
    let model = model(4, 2, 2);
    for (rewrite, part) in [
        (DropScanHeads::default().with_heads(1.0), "heads = 1: allowed are 0 to below 1"),
        (DropScanHeads::default().with_channels(-0.5), "channels = -0.5"),
        (DropScanHeads::default().with_heads(f64::NAN), "heads = NaN"),
    ] {
        let error = rewrite.fits(&model).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.message().contains(part), "{error}");
    }
    let mut other = model.clone();
    other.blocks[0].scan = None;
    let error = DropScanHeads::default().fits(&other).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.message().contains("block 0 of Mamba2 has no heads"), "{error}");
    let layout = &model.blocks[0];
    for (heads, channels, part) in [
        (&[0, 1][..], &[0][..], "as many heads of each group"),
        (&[0, 1, 2], &[0], "as many heads of each group"),
        (&[], &[0], "heads that stay"),
        (&[0, 4], &[0], "below 4"),
        (&[0, 2], &[1, 0], "channels of a head that stay"),
        (&[0, 2], &[], "channels of a head that stay"),
    ] {
        let error = Edit::scan(layout, heads, channels).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.message().contains(part), "{error}");
    }
    // By the norms of rows where nothing was seen, or nothing that is finite.
    let weight = matrix(32, HIDDEN, 7);
    let mut tensors = BTreeMap::from([("in.weight".to_owned(), stored(&weight, &[32, HIDDEN]))]);
    let nan = inputs(&Array2::from_elem((3, HIDDEN), f32::NAN));
    for view in
        [BlockView::new(layout, &tensors), BlockView::new(layout, &tensors).with_inputs(&nan)]
    {
        let judged = DropScanHeads::default().judge(&model, &view).unwrap();
        assert!(judged.notes()["in.weight"].contains("norms of their rows"), "{judged:?}");
        let scores = judged.values("scores").unwrap();
        let want = weight.row(8).iter().map(|w| f64::from(*w).powi(2)).sum::<f64>().sqrt();
        assert!((scores[0] - want).abs() < 1e-9);
    }
    tensors.insert("in.weight".to_owned(), stored(&(weight * f32::NAN), &[32, HIDDEN]));
    let error =
        DropScanHeads::default().judge(&model, &BlockView::new(layout, &tensors)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Numerical);
}
