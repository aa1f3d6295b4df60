//! Measures of information against closed forms.

mod common;

use common::{clustered, values};
use tensorpress_tensor::ErrorKind;
use tensorpress_tensor::ndarray::{Array2, Axis, concatenate, s};
use tensorpress_tokencomp::measure::{gaussian, ksg, language};
use tensorpress_tokencomp::{RandomKeep, ToMe, TokenHints, TokenReduce};

/// Columns of variance 1 without any correlation, to the bit: rows of a Hadamard matrix.
fn columns(count: usize) -> Array2<f32> {
    Array2::from_shape_fn((64, count), |(t, c)| {
        if (t & (c + 1)).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 }
    })
}

#[test]
fn normal_information_has_its_closed_form() {
    let all = columns(6);
    let x = all.slice(s![.., ..3]);
    for ridge in [1e-6, 1e-2, 0.5] {
        // Each channel of y has its correlation with one of x: informations add up.
        let rho = [0.9f32, 0.5, 0.0];
        let y = Array2::from_shape_fn((64, 3), |(t, c)| {
            rho[c] * all[[t, c]] + (1.0 - rho[c] * rho[c]).sqrt() * all[[t, 3 + c]]
        });
        let closed: f64 = rho
            .iter()
            .map(|rho| (f64::from(*rho) / (1.0 + ridge)).powi(2))
            .map(|square| -0.5 * (1.0 - square).ln())
            .sum();
        let found = gaussian(x, y.view(), ridge).unwrap();
        assert!((found - closed).abs() < 1e-6, "{ridge}: {found} {closed}");
        // Whichever is asked about which, at whatever scale and place.
        let moved = y.mapv(|v| v * 100.0 - 7.0);
        assert!((gaussian(moved.view(), x, ridge).unwrap() - closed).abs() < 1e-3);
        assert!(gaussian(x, all.slice(s![.., 3..]), ridge).unwrap() < 1e-12, "nothing in common");
        let own = gaussian(x, x, ridge).unwrap();
        let noise = 1.5 * ((1.0 + ridge).powi(2) / ((1.0 + ridge).powi(2) - 1.0)).ln();
        assert!((own - noise).abs() < 1e-6, "as much as the noise of the ridge lets through");
    }
    let kind = |x: &Array2<f32>, y: &Array2<f32>, ridge| {
        gaussian(x.view(), y.view(), ridge).unwrap_err().kind()
    };
    let one = values(1, 2, 1);
    assert_eq!(kind(&one, &one, 0.1), ErrorKind::InvalidArgument);
    assert_eq!(kind(&all, &all, 0.0), ErrorKind::InvalidArgument);
    assert_eq!(kind(&all, &one, 0.1), ErrorKind::ShapeMismatch);
    assert_eq!(kind(&all, &(&all * f32::INFINITY), 0.1), ErrorKind::Numerical);
    assert_eq!(gaussian(Array2::ones((5, 2)).view(), all.slice(s![..5, ..]), 0.1).unwrap(), 0.0);
}

#[test]
fn neighbours_find_the_information_of_normals() {
    let noise = values(900, 2, 5);
    for rho in [0.0f32, 0.6, 0.9] {
        let x = noise.slice(s![.., ..1]);
        let y = Array2::from_shape_fn((900, 1), |(t, _)| {
            rho * noise[[t, 0]] + (1.0 - rho * rho).sqrt() * noise[[t, 1]]
        });
        let closed = -0.5 * (1.0 - f64::from(rho).powi(2)).ln();
        let found = ksg(x, y.view(), 4).unwrap();
        assert!((found - closed).abs() < 0.06, "{rho}: {found} {closed}");
        // Unlike covariances, neighbours do not mind a bend.
        let bent = y.mapv(|v| v.powi(3));
        let found = ksg(x, bent.view(), 4).unwrap();
        assert!((found - closed).abs() < 0.09, "{rho}, bent: {found} {closed}");
    }
    let x = values(9, 1, 1);
    assert!(ksg(x.view(), x.view(), 0).is_err() && ksg(x.view(), x.view(), 9).is_err());
    assert_eq!(
        ksg(x.view(), values(8, 1, 1).view(), 2).unwrap_err().kind(),
        ErrorKind::ShapeMismatch
    );
}

/// By hand: four points on a line, y = x. Every nearest neighbour is 1 away, and none is strictly nearer in x or y.
#[test]
fn neighbours_by_hand() {
    let x = Array2::from_shape_fn((4, 1), |(t, _)| t as f32);
    // psi(1) + psi(4) - 2 psi(1) = 1 + 1/2 + 1/3.
    assert!((ksg(x.view(), x.view(), 1).unwrap() - 11.0 / 6.0).abs() < 1e-12);
}

#[test]
fn a_language_model_gains_by_reading() {
    let gain = language(&[-1.0, -2.0, -0.5], &[-2.0, -2.5, -3.0]).unwrap();
    assert!((gain - 4.0 / 3.0).abs() < 1e-12);
    assert!(language(&[-3.0], &[-1.0]).unwrap() < 0.0);
    assert_eq!(language(&[-1.0], &[]).unwrap_err().kind(), ErrorKind::ShapeMismatch);
    assert_eq!(language(&[], &[]).unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert_eq!(language(&[f64::NEG_INFINITY], &[-1.0]).unwrap_err().kind(), ErrorKind::Numerical);
}

/// What is kept of states says more of them the more is kept, and more than as many drawn by lot.
#[test]
fn merged_states_hold_information() {
    let x = clustered(300, 8, 3);
    let kept = |method: &dyn TokenReduce, keep: usize| {
        let reduced = method.reduce(x.view(), &TokenHints::default(), keep).unwrap();
        let back = reduced.map.unmerge(reduced.states.view()).unwrap();
        gaussian(x.view(), back.view(), 0.01).unwrap()
    };
    let by = |method: &dyn TokenReduce| [20, 75, 150, 250].map(|keep| kept(method, keep));
    let (tome, random) = (by(&ToMe::new()), by(&RandomKeep::new(1)));
    assert!(tome.is_sorted() && random.is_sorted(), "{tome:?} {random:?}");
    assert!(tome.iter().zip(&random).all(|(a, b)| a > b), "{tome:?} {random:?}");
    // Channels that say the same twice say no more, but through the ridge.
    let twice = concatenate(Axis(1), &[x.view(), x.view()]).unwrap();
    let (one, two) = (gaussian(x.view(), x.view(), 0.01), gaussian(x.view(), twice.view(), 0.01));
    assert!(two.unwrap() - one.unwrap() < 8.0 * 0.5 * 2.0f64.ln());
}
