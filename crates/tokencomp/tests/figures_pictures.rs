//! What the methods keep of made pictures, beside as many tokens by lot and by ToMe: the numbers of the pages.
//! `cargo test -p tensorpress-tokencomp --test figures_pictures -- --nocapture` prints them.

mod common;

use tensorpress_tensor::ndarray::{Array2, ArrayView1, Axis, concatenate, s};
use tensorpress_tokencomp::layers::{Align, LinearMap, SpaceToChannel};
use tensorpress_tokencomp::{
    AttentionTopK, Crops, DivPrune, GeometryMerge, GlobalCom2, MaskGuidedToMe, Pooling, RandomKeep,
    SubmodularSelect, TemporalMerge, ToMe, TokenCorr, TokenHints, TokenMap, TokenReduce,
    density_budgets, grid, pixel_gradient, pool_windows, reconstruction_error, semantic_density,
};

/// A picture of 128 x 128 pixels: a sky that brightens, a disc at `x`, a checked wall.
fn picture(x: f32) -> Array2<f32> {
    Array2::from_shape_fn((128, 128), |(r, c)| {
        let (row, col) = (r as f32, c as f32);
        if (row - 40.0).hypot(col - x) < 18.0 {
            1.0 - 0.01 * (row - 40.0)
        } else if row > 80.0 && col > 60.0 {
            0.3 + 0.4 * (((r / 5) + (c / 7)) % 2) as f32
        } else {
            0.2 + 0.003 * row
        }
    })
}

/// Patches of `side` x `side` pixels as tokens.
fn patches(picture: &Array2<f32>, side: usize) -> Array2<f32> {
    let (across, width) = (picture.ncols() / side, side * side);
    let tokens = picture.nrows() / side * across;
    let noise = common::values(tokens, width, 5) * 0.01;
    Array2::from_shape_fn((tokens, width), |(t, p)| {
        picture[[t / across * side + p / side, t % across * side + p % side]] + noise[[t, p]]
    })
}

/// Squares of each token's difference to what its place shows afterwards: its group, or the nearest token that is left.
fn off(
    x: &Array2<f32>,
    map: &TokenMap,
    states: &Array2<f32>,
    counts: impl Fn(usize) -> bool,
) -> f64 {
    let square = |a: ArrayView1<'_, f32>, b: ArrayView1<'_, f32>| {
        a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>()
    };
    let each = |t: usize| match map.target(t) {
        Some(target) => square(x.row(t), states.row(target)),
        None => {
            states.rows().into_iter().map(|z| square(x.row(t), z)).fold(f64::INFINITY, f64::min)
        }
    };
    let mean = x.mean_axis(Axis(0)).unwrap();
    let tokens = || (0..x.nrows()).filter(|t| counts(*t));
    tokens().map(each).sum::<f64>() / tokens().map(|t| square(x.row(t), mean.view())).sum::<f64>()
}

#[test]
fn a_made_picture() {
    let image = picture(30.0);
    let (x, places) = (patches(&image, 8), grid(16, 16, 1));
    let gradient = pixel_gradient(image.view(), 8).unwrap();
    let mut order: Vec<usize> = (0..256).collect();
    order.sort_by(|a, b| gradient[*b].total_cmp(&gradient[*a]));
    // The disc and its edge.
    let foreground: Vec<bool> = (0..256).map(|t| (t / 16) < 8 && (t % 16) < 7).collect();
    let hints = TokenHints::default()
        .with_places(&places)
        .with_saliency(&gradient)
        .with_foreground(&foreground)
        .with_attention(&gradient)
        .with_relevance(&gradient);
    let methods: [&dyn TokenReduce; 8] = [
        &RandomKeep::new(1),
        &Pooling::new(),
        &ToMe::new(),
        &DivPrune::new(),
        &SubmodularSelect::default(),
        &GeometryMerge::default(),
        &MaskGuidedToMe::new(),
        &TokenCorr::default(),
    ];
    println!("error of all patches / of the disc's");
    let mut found = std::collections::BTreeMap::new();
    for method in methods {
        let mut line = format!("| {} |", method.id());
        for keep in [192, 128, 64] {
            let reduced = method.reduce(x.view(), &hints, keep).unwrap();
            let all = off(&x, &reduced.map, &reduced.states, |_| true);
            let disc = off(&x, &reduced.map, &reduced.states, |t| foreground[t]);
            line += &format!(" {all:.4} / {disc:.4} |");
            found.insert((method.id(), keep), [all, disc]);
        }
        println!("{line}");
    }
    assert!(found[&("mask_guided_tome", 192)][1] < found[&("tome", 192)][1]);
    let windows = pool_windows(256, &hints, [2, 2]).unwrap();
    let mean = windows.merge(x.view(), None).unwrap();
    println!("windows of 2 x 2, 64 left: {:.4}", off(&x, &windows, &mean, |_| true));
}

/// What four tokens say through a projection beside their mean, read back by a linear map fitted on every other window.
#[test]
fn made_windows() {
    let x = patches(&picture(30.0), 4);
    let shape = SpaceToChannel::new(32, 32).unwrap();
    let wide = shape.gather(x.view()).unwrap();
    let half = |x: &Array2<f32>, at: usize| x.slice(s![at..;2, ..]).to_owned();
    let square = |x: Array2<f32>| x.mapv(|v| f64::from(v).powi(2)).sum();
    let mut projection =
        LinearMap::fit(wide.view(), shape.mean(x.view()).unwrap().view(), 1.0).unwrap();
    projection.bias.fill(0.0);
    let mut found = Vec::new();
    for (name, scale) in [("the mean alone", 0.0), ("a random projection beside it", 0.3)] {
        projection.weight = common::values(16, 64, 9) * scale;
        let few = shape.compress(x.view(), &projection).unwrap();
        let read = LinearMap::fit(half(&few, 0).view(), half(&wide, 0).view(), 1e-4).unwrap();
        let back = read.align(half(&few, 1).view()).unwrap();
        let (wide, centre) = (half(&wide, 1), half(&wide, 0).mean_axis(Axis(0)).unwrap());
        found.push(square(&back - &wide) / square(&wide - &centre));
        println!("{name}: {:.4} of the windows' variance is not read back", found[found.len() - 1]);
    }
    assert!(found[1] < found[0]);
}

#[test]
fn made_crops() {
    // The picture in four crops of 8 x 8 tokens, and the whole of it at half the size.
    let image = picture(30.0);
    let small = Array2::from_shape_fn((64, 64), |(r, c)| {
        image.slice(s![2 * r..2 * r + 2, 2 * c..2 * c + 2]).mean().unwrap()
    });
    let part = |i: usize| {
        image.slice(s![i / 2 * 64..i / 2 * 64 + 64, i % 2 * 64..i % 2 * 64 + 64]).to_owned()
    };
    let pictures: Vec<Array2<f32>> = std::iter::once(small).chain((0..4).map(part)).collect();
    let tokens: Vec<Array2<f32>> = pictures.iter().map(|p| patches(p, 8)).collect();
    let views: Vec<_> = tokens.iter().map(|x| x.view()).collect();
    let x = concatenate(Axis(0), &views).unwrap();
    // Class attention in proportion to gradients, of each picture for itself.
    let attention: Vec<f32> = pictures
        .iter()
        .flat_map(|p| {
            let g = pixel_gradient(p.view(), 8).unwrap();
            let sum: f32 = g.iter().sum();
            g.into_iter().map(move |v| 100.0 * v / sum)
        })
        .collect();
    let (places, of): (_, Vec<usize>) = (grid(8, 8, 5), (0..320).map(|t| t / 64).collect());
    let hints = TokenHints::default()
        .with_places(&places)
        .with_attention(&attention)
        .with_crops(Crops::new(&of).with_thumbnail(0, [2, 2]));
    println!("error of the crops' patches, and tokens of each picture");
    for method in [
        &RandomKeep::new(1) as &dyn TokenReduce,
        &AttentionTopK::new(),
        &ToMe::new(),
        &TokenCorr::default(),
        &GlobalCom2::default(),
    ] {
        let mut line = format!("| {} |", method.id());
        for keep in [160, 80] {
            let reduced = method.reduce(x.view(), &hints, keep).unwrap();
            let counts = (0..5).map(|i| {
                (i * 64..i * 64 + 64).filter(|t| reduced.map.target(*t).is_some()).count()
            });
            line += &format!(
                " {:.4} {:?} |",
                off(&x, &reduced.map, &reduced.states, |t| of[t] > 0),
                counts.collect::<Vec<_>>()
            );
        }
        println!("{line}");
    }
}

#[test]
fn a_made_video() {
    // Six frames: a disc moves over a sky and a wall that stand still.
    let frames: Vec<Array2<f32>> =
        (0..6).map(|f| patches(&picture(26.0 + 12.0 * f as f32), 8)).collect();
    let views: Vec<_> = frames.iter().map(|x| x.view()).collect();
    let mut x = concatenate(Axis(0), &views).unwrap();
    x.iter_mut()
        .enumerate()
        .for_each(|(i, v)| *v += 0.01 * (((i * 7919) % 101) as f32 / 50.0 - 1.0));
    let (places, of): (_, Vec<usize>) = (grid(16, 16, 6), (0..1536).map(|t| t / 256).collect());
    let hints = TokenHints::default().with_places(&places).with_frames(&of);
    let drop = TemporalMerge::default().with_drop(true);
    println!("error of all patches");
    let mut found = Vec::new();
    for (name, method) in [
        ("random", &RandomKeep::new(1) as &dyn TokenReduce),
        ("pooling", &Pooling::new()),
        ("tome", &ToMe::new()),
        ("geometry", &GeometryMerge::default()),
        ("temporal_merge", &TemporalMerge::default()),
        ("temporal_merge, dropping", &drop),
    ] {
        let mut line = format!("| {name} |");
        for keep in [768, 512, 384] {
            let reduced = method.reduce(x.view(), &hints, keep).unwrap();
            let all = off(&x, &reduced.map, &reduced.states, |_| true);
            line += &format!(" {all:.4} |");
            found.push(all);
        }
        println!("{line}");
    }
    let windows = pool_windows(1536, &hints, [2, 2]).unwrap();
    println!(
        "windows of 2 x 2, 384 left: {:.4}",
        off(&x, &windows, &windows.merge(x.view(), None).unwrap(), |_| true)
    );
    let parts = [s![..64, ..64], s![..64, 64..], s![64.., ..64], s![64.., 64..]];
    let density = parts.map(|part| {
        semantic_density(patches(&picture(30.0).slice(part).to_owned(), 8).view()).unwrap()
    });
    let budgets = density_budgets(&density, &[64; 4], 96, 4).unwrap();
    println!("density of disc, sky, ground, wall: {density:.2?}, of 96 tokens {budgets:?}");
    assert!(found[12] < found[6], "temporal merging against ToMe at half");
    let map = ToMe::new().plan(x.view(), &hints, 768).unwrap();
    let z = map.merge(x.view(), None).unwrap();
    assert!(reconstruction_error(x.view(), &map, z.view()).unwrap() < 1.0);
}
