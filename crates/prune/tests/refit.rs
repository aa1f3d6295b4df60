//! The head's refit against what it says it is the minimum of, and what it leaves alone.

use std::collections::BTreeMap;

use proptest::prelude::*;
use tensorpress_prune::depth::{RefitHead, refit};
use tensorpress_tensor::linalg::gaussian;
use tensorpress_tensor::ndarray::{Array1, Array2};
use tensorpress_tensor::rewrite::{
    BlockLayout, BlockShape, Change, HeadLayout, HeadView, LinearSpec, ModelLayout, Outputs, Role,
};
use tensorpress_tensor::{DType, ErrorKind, Method, RawTensor, Rewrite, Tensor, Usable};

fn matrix(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    Array2::from_shape_fn((rows, cols), |(i, j)| gaussian(seed, (i * cols + j) as u64) as f32)
}

fn stored(matrix: &Array2<f32>) -> RawTensor {
    let mut bytes = Vec::new();
    DType::F32.write_f32(matrix.as_slice().unwrap(), &mut bytes).unwrap();
    RawTensor::new(DType::F32, matrix.shape().to_vec(), bytes.into()).unwrap()
}

/// Blocks of one matrix with so many rows each, and a head.
fn model(rows: &[usize]) -> ModelLayout {
    let block = |(block, rows): (usize, &usize)| {
        let name = format!("layers.{block}.down.weight");
        let linears = vec![LinearSpec::new(Role::Down, name, [*rows, 4])];
        BlockLayout::new(block, format!("layers.{block}."), BlockShape::new(2, 1, 4), linears)
    };
    let blocks = rows.iter().enumerate().map(block).collect();
    ModelLayout::new("Llama", 6, 3, blocks).with_head(Some(HeadLayout::new("head", [9, 6])))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]

    /// Fails without the ridge's other half, λ W: then the head shrinks.
    #[test]
    fn a_refitted_head_is_at_the_minimum(
        tokens in 1usize..40, width in 1usize..8, vocab in 1usize..6, seed in any::<u64>(),
        damp in prop::sample::select(vec![1e-3, 0.01, 1.0]),
    ) {
        let (head, reference) = (matrix(vocab, width, seed), matrix(tokens, width, seed ^ 1));
        let changed = matrix(tokens, width, seed ^ 2);
        let outputs = Outputs::new(reference.view(), changed.view());
        let Usable::Yes(found) = refit(head.view(), outputs, damp).unwrap() else { panic!() };
        let wide = |m: &Array2<f32>| m.mapv(f64::from);
        let (w, x, y) = (wide(&head), wide(&reference), wide(&changed));
        let lambda = damp * y.mapv(|v| v * v).sum() / width as f64;
        let objective = |v: &Array2<f64>| {
            let (fit, moved) = (y.dot(&v.t()) - x.dot(&w.t()), v - &w);
            fit.mapv(|d| d * d).sum() + lambda * moved.mapv(|d| d * d).sum()
        };
        let least = objective(&wide(&found));
        // Convex: no step along any coordinate finds less, by more than f32 can say.
        for (i, j) in (0..vocab).flat_map(|i| (0..width).map(move |j| (i, j))) {
            for step in [-1e-2, 1e-2] {
                let mut moved = wide(&found);
                moved[[i, j]] += step;
                prop_assert!(objective(&moved) > least - 1e-9 * least.max(1.0));
            }
        }
        prop_assert!(least <= objective(&w) * (1.0 + 1e-6) + 1e-9);
    }
}

#[test]
fn a_head_that_can_be_made_good_is() {
    // What is read now is an invertible map of what was: the logits come back.
    let (head, reference, map) = (matrix(7, 5, 1), matrix(40, 5, 2), matrix(5, 5, 3));
    let changed = reference.dot(&map);
    let outputs = Outputs::new(reference.view(), changed.view());
    let Usable::Yes(found) = refit(head.view(), outputs, 0.0).unwrap() else { panic!() };
    let (was, now) = (reference.dot(&head.t()), changed.dot(&found.t()));
    assert!((was - now).iter().all(|d| d.abs() < 1e-3));
    // Nothing has changed, nothing changes; whatever the damping, and also where fewer tokens than channels were seen.
    for (tokens, damp) in [(40, 0.01), (2, 0.01), (2, 0.0), (1, 10.0)] {
        let x = matrix(tokens, 5, 4);
        let outputs = Outputs::new(x.view(), x.view());
        let Usable::Yes(found) = refit(head.view(), outputs, damp).unwrap() else { panic!() };
        assert!((&found - &head).iter().all(|d| d.abs() < 1e-5), "{tokens} {damp}");
    }
    // A channel that is never read stays as it was, and one more token without numbers counts for nothing.
    let (mut x, mut y) = (matrix(30, 5, 5), matrix(30, 5, 6));
    y.column_mut(3).fill(0.0);
    let fit = |x: &Array2<f32>, y: &Array2<f32>| match refit(
        head.view(),
        Outputs::new(x.view(), y.view()),
        0.01,
    ) {
        Ok(Usable::Yes(found)) => found,
        other => panic!("{other:?}"),
    };
    let found = fit(&x, &y);
    assert!((&found.column(3) - &head.column(3)).iter().all(|d| d.abs() < 1e-6));
    assert!((&found.column(2) - &head.column(2)).iter().any(|d| d.abs() > 0.1));
    for m in [&mut x, &mut y] {
        m.push_row(Array1::from_elem(5, f32::INFINITY).view()).unwrap();
    }
    assert_eq!(fit(&x, &y), found);
}

#[test]
fn outputs_that_cannot_be_used_leave_the_head() {
    let head = matrix(7, 5, 1);
    let (zero, nan) = (Array2::zeros((3, 5)), Array2::from_elem((3, 5), f32::NAN));
    let empty = Array2::zeros((0, 5));
    for (x, y, part) in [
        (&nan, &nan, "no token with finite outputs"),
        (&empty, &empty, "no token"),
        (&matrix(3, 5, 2), &zero, "zero"),
        (&Array2::from_elem((3, 5), 3e38), &Array2::from_elem((3, 5), 1e-30), "beyond f32"),
    ] {
        let outputs = Outputs::new(x.view(), y.view());
        let found = refit(head.view(), outputs, 0.0).unwrap();
        assert!(matches!(&found, Usable::No(reason) if reason.contains(part)), "{found:?}");
        // The rewrite says so.
        let (layout, tensors) =
            (HeadLayout::new("head", [7, 5]), BTreeMap::from([("head".to_owned(), stored(&head))]));
        let rewrite = RefitHead::default().with_damp(0.0);
        let edit = rewrite.edit_head(&model(&[6, 6]), &HeadView::new(&layout, &tensors, outputs));
        let edit = edit.unwrap();
        assert!(edit.changes().is_empty() && edit.notes()["head"].contains(part));
    }
    let outputs = Outputs::new(zero.view(), zero.view());
    for damp in [-1.0, f64::NAN, f64::INFINITY] {
        let error = refit(head.view(), outputs, damp).unwrap_err();
        assert!(error.message().contains("damp = "), "{error}");
        let error = RefitHead::default().with_damp(damp).fits(&model(&[6, 6])).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    }
    let error = refit(matrix(7, 4, 1).view(), outputs, 0.0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ShapeMismatch);
    let error = RefitHead::default().fits(&model(&[6, 6]).with_head(None)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
}

#[test]
fn a_refit_keeps_the_stored_type_and_says_when_a_table_is_left_alone() {
    let (head, x, y) = (matrix(7, 5, 1), matrix(30, 5, 2), matrix(30, 5, 3));
    for (dtype, tied, scale) in
        [(DType::BF16, true, 1.0), (DType::F16, false, 1.0), (DType::F16, false, 1e6)]
    {
        let mut bytes = Vec::new();
        dtype.write_f32(head.as_slice().unwrap(), &mut bytes).unwrap();
        let raw = RawTensor::new(dtype, vec![7, 5], bytes.into()).unwrap();
        let (layout, tensors) = (
            HeadLayout::new("head", [7, 5]).with_tied(tied),
            BTreeMap::from([("head".to_owned(), raw)]),
        );
        let small = &y / scale;
        let view = HeadView::new(&layout, &tensors, Outputs::new(x.view(), small.view()));
        let rewrite = RefitHead::default();
        assert!(
            rewrite.changes_head() && rewrite.keeps_blocks_alike() && rewrite.needs().is_none()
        );
        let edit = rewrite.edit_head(&model(&[6, 6]), &view).unwrap();
        let Some(Change::New(new)) = edit.changes().get("head") else {
            assert!(scale > 1.0 && edit.notes()["head"].contains("beyond the type"));
            continue;
        };
        assert_eq!((new.dtype(), new.shape(), scale), (dtype, &[7, 5][..], 1.0));
        assert_eq!(edit.notes().contains_key("head"), tied);
        let stored = view.matrix().unwrap();
        let Ok(Usable::Yes(want)) = refit(stored.view(), view.outputs(), 0.01) else { panic!() };
        let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 0.01 * b.abs() + 1e-3;
        assert!(new.to_matrix().unwrap().iter().zip(&want).all(close));
    }
}
