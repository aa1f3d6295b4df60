//! Scores of layers beside their formulas.

use tensorpress_allocate::scores::{change, outliers, z_scores};
use tensorpress_tensor::ErrorKind;
use tensorpress_tensor::ndarray::{Array2, array};

#[test]
fn changes_are_angles() {
    let before = array![[1.0f32, 0.0], [0.0, 2.0], [3.0, 0.0], [0.0, 0.0]];
    // As it was, a right angle, the other way, and nothing.
    let after = array![[5.0f32, 0.0], [1.0, 0.0], [-1.0, 0.0], [1.0, 1.0]];
    assert!((change(before.view(), after.view()).unwrap() - 1.0).abs() < 1e-12);
    assert!(change(before.view(), before.view()).unwrap() - 0.25 < 1e-12);
    let other = Array2::<f32>::zeros((4, 3));
    assert_eq!(change(before.view(), other.view()).unwrap_err().kind(), ErrorKind::ShapeMismatch);
    let none = Array2::<f32>::zeros((0, 3));
    assert_eq!(change(none.view(), none.view()).unwrap_err().kind(), ErrorKind::InsufficientData);
}

#[test]
fn weights_far_out_are_counted() {
    let mut weight = Array2::<f32>::zeros((10, 10));
    weight[[3, 4]] = 1.0;
    assert_eq!(z_scores(weight.view()), 0.01);
    assert_eq!(z_scores(Array2::from_elem((3, 3), 2.0).view()), 0.0);
    assert_eq!(z_scores(Array2::zeros((0, 4)).view()), 0.0);
    // Column 4: the greatest is ten times the mean.
    assert_eq!(outliers(weight.view()), 10.0);
    assert_eq!(outliers(array![[1.0f32, -3.0], [1.0, 1.0]].view()), 1.5);
    assert_eq!(outliers(Array2::zeros((2, 2)).view()), 0.0);
}
