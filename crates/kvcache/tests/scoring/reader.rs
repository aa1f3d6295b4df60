//! Layers that read the keys and values of another one.

use std::sync::Arc;

use tensorpress_kvcache::{Causal, KvShape, KvStore, Reader, Scoring, StoreForm};
use tensorpress_tensor::{DType, ErrorKind, Scratch, ndarray::Array3};

use crate::reference::{Asked, near, reference};
use crate::{N, bias, filled, forms, noise, scorings, shapes, thin};

#[test]
fn readers_attend_over_the_owner_with_their_own_queries() {
    for form in forms() {
        for shape in shapes() {
            let mut owner = filled(shape, form.clone(), &Scoring::default().with_softcap(0.3), N);
            thin(&mut owner);
            let owner = Arc::new(owner);
            for heads in [shape.kv_heads, 2 * shape.heads] {
                for (i, scoring) in scorings(heads).into_iter().enumerate() {
                    let reader =
                        Reader::new(shape, heads).and_then(|r| r.with_scoring(scoring.clone()));
                    let reader = reader.expect("a reader");
                    for rows in [1, 20] {
                        let (q, causal) =
                            (noise(rows, heads, shape.head_dim, 5), Causal::from(N - rows));
                        let bias = bias(heads, rows, i);
                        let asked = Asked { heads, scoring: &scoring, causal, bias: bias.as_ref() };
                        let exact = reference(&*owner, &q, asked);
                        let mut out = Array3::zeros((rows, heads, shape.value_dim));
                        let (to, scratch) = (out.view_mut(), &mut Scratch::default());
                        let bias = bias.as_ref().map(|b| b.view());
                        reader
                            .attend(&owner, q.view(), causal, bias, to, scratch, None)
                            .expect("attends");
                        near(&out, &exact.0, 2e-3, &format!("{form:?} {shape:?} {scoring:?}"));
                    }
                }
            }
        }
    }
}

#[test]
fn readers_of_other_heads_are_refused() {
    let shape = shapes()[0];
    let owner = filled(shape, StoreForm::Float(DType::F32), &Scoring::default(), 5);
    let other = KvShape::new(shape.heads, shape.kv_heads, shape.head_dim / 2).expect("a shape");
    let (q, mut out) = (noise(1, 4, shape.head_dim / 2, 1), noise(1, 4, shape.head_dim / 2, 1));
    let reader = Reader::new(other, 4).expect("a reader");
    let scratch = &mut Scratch::default();
    let error =
        reader.attend(&owner, q.view(), Causal::from(4), None, out.view_mut(), scratch, None);
    assert_eq!(error.unwrap_err().kind(), ErrorKind::ShapeMismatch);
    assert_eq!(Reader::new(shape, 3).unwrap_err().kind(), ErrorKind::InvalidArgument);
    let four = Scoring::default().with_sinks(vec![0.0; 4]);
    let error = Reader::new(owner.shape(), 2).and_then(|r| r.with_scoring(four)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ShapeMismatch);
}
