//! FLAP against the official implementation and against slow references.

use proptest::prelude::*;
use tensorpress_prune::flap::{
    BlockScores, BlockSupport, HeadLayout, InputStatistics, compensation, least_salient,
};
use tensorpress_prune::{ChannelMetric, Flap};
use tensorpress_tensor::linalg::SplitMix;
use tensorpress_tensor::ndarray::{Array1, Array2, ArrayView1, Axis, s};
use tensorpress_tensor::stats::Moments;
use tensorpress_tensor::testing::golden::Golden;
use tensorpress_tensor::{ErrorKind, Method};

/// The statistics of the official code, batch after batch: a running mean of the batches' means; distances from the
/// mean as it is after the batch, of all batches but the first, weighed by their number; the mean of the batches' sums
/// of squares.
fn official(x: &Array2<f32>, batch: usize) -> InputStatistics {
    let channels = x.ncols();
    let [mut mean, mut fluctuation, mut energy] = [(); 3].map(|()| Array1::<f64>::zeros(channels));
    for (n, rows) in x.axis_chunks_iter(Axis(0), batch).enumerate() {
        let (n, rows) = (n as f64, rows.mapv(f64::from));
        mean = (mean * n + rows.mean_axis(Axis(0)).expect("rows")) / (n + 1.0);
        energy = (energy * n + rows.mapv(|v| v * v).sum_axis(Axis(0))) / (n + 1.0);
        if n > 0.0 {
            let distances = (&rows - &mean).mapv(|d| d * d).sum_axis(Axis(0));
            fluctuation = fluctuation * ((n - 1.0) / n) + distances / (n + 1.0);
        }
    }
    InputStatistics::new(mean, fluctuation, energy).expect("finite")
}

/// Largest difference relative to the largest value.
fn distance(ours: ArrayView1<'_, f64>, theirs: &Array2<f32>) -> f64 {
    let theirs = theirs.row(0).mapv(f64::from);
    let size = theirs.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    (&ours - &theirs).iter().fold(0.0f64, |m, v| m.max(v.abs())) / size
}

#[test]
fn flap_matches_official_scores_supports_and_biases() {
    let Some(files) = Golden::all("flap") else { return };
    for golden in &files {
        let name = &golden.name;
        let rows = golden.param("rows_per_batch").as_u64().expect("a number") as usize;
        let ratio = golden.param("pruning_ratio").as_f64().expect("a number");
        let (metric, known) = match golden.param("metrics").as_str().expect("a name") {
            "IFV" => (ChannelMetric::Ifv, "fluc_inp"),
            "WIFV" => (ChannelMetric::Wifv, "fluc_inp"),
            "WIFN" => (ChannelMetric::Wifn, "scaler_inp"),
            other => panic!("metric {other}"),
        };
        let weight = golden.layer.weight.view();
        let inputs = official(&golden.layer.x, rows);
        // The reference for the statistics first: the recurrences are the official ones.
        assert!(distance(inputs.mean.view(), &golden.floats("baseline_inp")) < 1e-4, "{name}");
        let values = if known == "fluc_inp" { &inputs.fluctuation } else { &inputs.energy };
        assert!(distance(values.view(), &golden.floats(known)) < 1e-4, "{name}: {known}");

        let scores = metric.scores(weight, &inputs).unwrap();
        let far = distance(scores.view(), &golden.floats("metric"));
        let gone = least_salient(scores.as_slice().unwrap(), ratio);
        let mask = golden.floats("keep_mask");
        let same = mask.iter().zip(&gone).filter(|(k, gone)| (**k == 1.0) != **gone).count();
        let same = same as f64 / gone.len() as f64;
        let keep: Vec<bool> = gone.iter().map(|gone| !gone).collect();
        let bias = compensation(weight, inputs.mean.view(), &keep);
        let off = distance(bias.mapv(f64::from).view(), &golden.floats("output_bias"));
        // ‖X(W - Ŵ)ᵀ - b‖ / ‖XWᵀ‖ in f64.
        let (x, w) = (golden.layer.x.mapv(f64::from), weight.mapv(f64::from));
        let mut lost = w.clone();
        lost.axis_iter_mut(Axis(1))
            .zip(&keep)
            .filter(|(_, k)| **k)
            .for_each(|(mut c, _)| c.fill(0.0));
        let norm = |m: &Array2<f64>| m.iter().map(|v| v * v).sum::<f64>().sqrt();
        let exact = norm(&x.dot(&w.t()));
        let plain = norm(&x.dot(&lost.t())) / exact;
        let error = norm(&(x.dot(&lost.t()) - &bias.mapv(f64::from))) / exact;
        println!(
            "{name}: metric within {far:.1e}, masks equal on {same:.6}, bias within {off:.1e}, output error {plain:.6} \
             without and {error:.6} with bias"
        );
        assert!(far < 1e-4 && same >= 0.999 && off < 1e-3, "{name}");
        for (got, key) in [(plain, "output_rel_err_no_bias"), (error, "output_rel_err_with_bias")] {
            let stated = golden.figure(key).expect("a figure");
            assert!((got / stated - 1.0).abs() <= 0.01, "{name}: {key} {got} against {stated}");
        }
        // What the pipeline uses instead: exact moments. They choose nearly the same channels, and do no worse.
        let mut moments = Moments::new(weight.ncols());
        moments.update(golden.layer.x.view());
        let exact_inputs = InputStatistics::from(&moments);
        let mine =
            least_salient(metric.scores(weight, &exact_inputs).unwrap().as_slice().unwrap(), ratio);
        let shared = mine.iter().zip(&gone).filter(|(a, b)| a == b).count() as f64;
        println!("{name}: exact moments choose the same on {:.4}", shared / gone.len() as f64);
        assert!(shared / gone.len() as f64 > 0.95, "{name}");
    }
    println!("golden files checked: flap {}", files.len());
    assert!(files.len() >= 4, "golden vectors are missing");
}

fn random(n: usize, random: &mut SplitMix) -> Vec<f64> {
    // Heavy tails, as fluctuations have.
    (0..n).map(|_| (random.next_f64() * 6.0).exp()).collect()
}

fn blocks(count: usize, layout: HeadLayout, channels: usize, seed: u64) -> Vec<BlockScores> {
    let mut source = SplitMix::new(seed);
    let block = |_| {
        let attention = random(layout.heads * layout.head_dim, &mut source);
        BlockScores::new(layout, attention, random(channels, &mut source))
    };
    (0..count).map(block).collect()
}

/// Weights of what stays, per channel of the residual stream.
fn weights(block: &BlockScores, kept: &BlockSupport) -> f64 {
    let heads = kept.heads.len() + kept.kv_heads.len();
    (2 * heads * block.layout.head_dim + block.mlp_matrices * kept.channels.len()) as f64
}

fn whole(block: &BlockScores) -> f64 {
    let layout = block.layout;
    (2 * (layout.heads + layout.kv_heads) * layout.head_dim
        + block.mlp_matrices * block.channels.len()) as f64
}

/// The official adaptive rule for heads without groups (AL-AM), as its page says: squared attention scores,
/// standardised (unbiased) and averaged per head; a head counts 4 d / 3 channels; the threshold is the score at which
/// the kept weights come closest to the share asked for, and what is above it stays.
fn official_adaptive(blocks: &[BlockScores], ratio: f64) -> Vec<(Vec<bool>, Vec<bool>)> {
    let standard = |v: &[f64]| {
        let n = v.len() as f64;
        let mean = v.iter().sum::<f64>() / n;
        let deviation = (v.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt();
        v.iter().map(|x| (x - mean) / deviation).collect::<Vec<_>>()
    };
    let dim = blocks[0].layout.head_dim;
    let heads: Vec<Vec<f64>> = (blocks.iter())
        .map(|b| {
            let squares: Vec<f64> = b.attention.iter().map(|s| s * s).collect();
            standard(&squares).chunks(dim).map(|c| c.iter().sum::<f64>() / dim as f64).collect()
        })
        .collect();
    let channels: Vec<Vec<f64>> = blocks.iter().map(|b| standard(&b.channels)).collect();
    let cost = 4.0 * dim as f64 / 3.0;
    let mut all: Vec<(f64, f64)> = heads.iter().flatten().map(|s| (*s, cost)).collect();
    all.extend(channels.iter().flatten().map(|s| (*s, 1.0)));
    all.sort_by(|a, b| b.0.total_cmp(&a.0));
    let target = all.iter().map(|u| u.1).sum::<f64>() * (1.0 - ratio);
    let (mut sum, mut best, mut threshold) = (0.0, f64::INFINITY, 0.0);
    for (score, cost) in all {
        sum += cost;
        if (sum - target).abs() < best {
            (best, threshold) = ((sum - target).abs(), score);
        }
    }
    let above = |v: &Vec<f64>| v.iter().map(|s| *s > threshold).collect::<Vec<bool>>();
    heads.iter().zip(&channels).map(|(h, c)| (above(h), above(c))).collect()
}

#[test]
fn the_adaptive_form_follows_the_official_threshold() {
    for (seed, ratio) in [(1, 0.2), (2, 0.35), (3, 0.5), (4, 0.05)] {
        let layout = HeadLayout::new(6, 6, 8).unwrap();
        let blocks = blocks(5, layout, 128, seed);
        let ours = Flap::new(ratio).select(&blocks).unwrap();
        let theirs = official_adaptive(&blocks, ratio);
        // What differs lies at the threshold: no more than a head's worth of channels, and a head.
        let (mut heads, mut channels) = (0, 0);
        for (ours, (head, channel)) in ours.iter().zip(&theirs) {
            heads += (0..6).filter(|h| ours.heads.contains(h) != head[*h]).count();
            channels += (0..128).filter(|c| ours.channels.contains(c) != channel[*c]).count();
        }
        println!("ratio {ratio}: {heads} heads and {channels} channels differ");
        assert!(heads <= 1 && channels <= 11, "ratio {ratio}: {heads} heads, {channels} channels");
        let sizes: Vec<usize> = ours.iter().map(|k| k.channels.len()).collect();
        assert!(sizes.iter().any(|s| *s != sizes[0]), "blocks differ: {sizes:?}");
    }
}

/// The best cut of all, found by trying every set of groups and of heads in them.
fn exhaustive(layout: HeadLayout, scores: &[f64], number: usize) -> (usize, f64) {
    let group = layout.group();
    let (mut most, mut best) = (0, 0.0);
    for set in 0u32..1 << layout.heads {
        let stays = |g: usize| {
            (g * group..(g + 1) * group).filter(|h| set >> h & 1 == 1).collect::<Vec<_>>()
        };
        let stay: Vec<Vec<usize>> =
            (0..layout.kv_heads).map(stays).filter(|heads| !heads.is_empty()).collect();
        if stay.is_empty() || stay.iter().any(|heads| heads.len() != stay[0].len()) {
            continue;
        }
        let kept: f64 = stay.iter().flatten().map(|h| scores[*h]).sum();
        let lost = scores.iter().sum::<f64>() - kept;
        let removed = layout.heads - stay.iter().map(Vec::len).sum::<usize>();
        if removed <= number && (removed > most || (removed == most && lost < best)) {
            (most, best) = (removed, lost);
        }
    }
    (most, best)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// One block's heads: as many as may go in any layout that remains one, and the least salient such.
    #[test]
    fn heads_go_as_the_layout_allows(
        kv_heads in 1usize..5,
        group in 1usize..4,
        sparsity in 0.0f64..1.0,
        seed in any::<u64>(),
    ) {
        let layout = HeadLayout::new(kv_heads * group, kv_heads, 2).unwrap();
        let block = blocks(1, layout, 7, seed);
        let kept = Flap::new(sparsity).with_uniform(true).select(&block).unwrap().remove(0);
        let scores: Vec<f64> =
            block[0].attention.chunks(2).map(|c| c.iter().map(|s| s * s).sum::<f64>() / 2.0).collect();
        let number = ((layout.heads as f64 * sparsity + 1e-9) as usize).min(layout.heads - 1);
        let (removed, lost) = exhaustive(layout, &scores, number);
        prop_assert_eq!(layout.heads - kept.heads.len(), removed);
        let mine: f64 = scores.iter().sum::<f64>() - kept.heads.iter().map(|h| scores[*h]).sum::<f64>();
        prop_assert!((mine - lost).abs() <= 1e-9 * scores.iter().sum::<f64>(), "{} against {}", mine, lost);
        prop_assert!(!kept.kv_heads.is_empty() && kept.heads.len().is_multiple_of(kept.kv_heads.len()));
        let per_group = kept.heads.len() / kept.kv_heads.len();
        for (heads, kv) in kept.heads.chunks(per_group).zip(&kept.kv_heads) {
            prop_assert!(heads.iter().all(|h| h / group == *kv));
        }
        prop_assert_eq!(kept.channels.len(), 7 - ((7.0 * sparsity + 1e-9) as usize).min(6));
    }

    /// Any blocks: the share that goes is what was asked for, up to what one channel weighs; nothing is emptied.
    #[test]
    fn the_adaptive_form_spends_its_budget(
        heads in prop_oneof![Just((1, 1)), Just((4, 4)), Just((8, 4)), Just((6, 2)), Just((5, 1))],
        half in 1usize..5,
        channels in 20usize..90,
        count in 1usize..6,
        sparsity in 0.0f64..0.6,
        seed in any::<u64>(),
    ) {
        let layout = HeadLayout::new(heads.0, heads.1, 2 * half).unwrap();
        let blocks = blocks(count, layout, channels, seed);
        let kept = Flap::new(sparsity).select(&blocks).unwrap();
        let all: f64 = blocks.iter().map(whole).sum();
        let left: f64 = blocks.iter().zip(&kept).map(|(b, k)| weights(b, k)).sum();
        prop_assert!(all - left <= all * sparsity + 1e-6, "{} of {}", all - left, all);
        // Unless there are only the last channels of each block left to take.
        let emptied = kept.iter().any(|k| k.channels.len() == 1);
        prop_assert!(emptied || all * sparsity - (all - left) <= 3.0, "{} of {}", all - left, all);
        for (block, kept) in blocks.iter().zip(&kept) {
            prop_assert!(!kept.heads.is_empty() && !kept.channels.is_empty());
            prop_assert!(kept.heads.is_sorted() && kept.kv_heads.is_sorted() && kept.channels.is_sorted());
            let least = kept.channels.iter().map(|c| block.channels[*c]).fold(f64::INFINITY, f64::min);
            let gone = (0..channels).filter(|c| !kept.channels.contains(c));
            prop_assert!(gone.map(|c| block.channels[c]).all(|s| s <= least));
        }
    }
}

#[test]
fn compensation_makes_constant_channels_free() {
    let mut source = SplitMix::new(9);
    let mut x = Array2::from_shape_fn((50, 6), |_| source.next_f64() as f32 - 0.5);
    x.column_mut(1).fill(0.75);
    x.column_mut(4).fill(0.0);
    let weight = Array2::from_shape_fn((4, 6), |_| source.next_f64() as f32 - 0.5);
    let mut moments = Moments::new(6);
    moments.update(x.view());
    let inputs = InputStatistics::from(&moments);
    let scores = ChannelMetric::Wifv.scores(weight.view(), &inputs).unwrap();
    let gone = least_salient(scores.as_slice().unwrap(), 0.34);
    assert_eq!(gone, [false, true, false, false, true, false]);
    let keep: Vec<bool> = gone.iter().map(|g| !g).collect();
    let bias = compensation(weight.view(), inputs.mean.view(), &keep);
    let exact = x.dot(&weight.t());
    x.column_mut(1).fill(0.0);
    let pruned = x.dot(&weight.t()) + &bias;
    assert!((exact - pruned).iter().all(|d| d.abs() < 1e-6));
    assert_eq!(compensation(weight.slice(s![..0, ..]), inputs.mean.view(), &keep).len(), 0);
}

#[test]
fn impossible_parameters_are_refused() {
    let layout = HeadLayout::new(2, 1, 4).unwrap();
    let good = blocks(2, layout, 5, 1);
    for sparsity in [-0.1, 1.0, 1.5, f64::NAN, f64::INFINITY] {
        let error = Flap::new(sparsity).select(&good).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.to_string().contains(&format!("sparsity = {sparsity}")), "{error}");
    }
    for (heads, kv_heads, dim) in [(0, 1, 4), (2, 0, 4), (2, 1, 0), (3, 2, 4)] {
        let error = HeadLayout::new(heads, kv_heads, dim).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    }
    let kind = |blocks: &[BlockScores], flap: Flap| flap.select(blocks).unwrap_err().kind();
    let mut short = good.clone();
    short[1].attention.pop();
    assert_eq!(kind(&short, Flap::new(0.2)), ErrorKind::ShapeMismatch);
    let mut empty = good.clone();
    empty[0].channels.clear();
    assert_eq!(kind(&empty, Flap::new(0.2)), ErrorKind::ShapeMismatch);
    let mut poisoned = good.clone();
    poisoned[0].channels[1] = f64::NAN;
    assert_eq!(kind(&poisoned, Flap::new(0.2)), ErrorKind::Numerical);
    let mut uneven = good.clone();
    uneven[1].channels.pop();
    assert!(Flap::new(0.2).select(&uneven).is_ok());
    assert_eq!(kind(&uneven, Flap::new(0.2).with_uniform(true)), ErrorKind::Unsupported);
    assert_eq!(Flap::new(0.2).select(&[]).unwrap(), []);

    let inputs = |n: usize| InputStatistics::new(Array1::ones(n), Array1::ones(n), Array1::ones(n));
    let weight = Array2::<f32>::ones((3, 4));
    let mut infinite = weight.clone();
    infinite[[1, 2]] = f32::INFINITY;
    for metric in [ChannelMetric::Wifv, ChannelMetric::Ifv, ChannelMetric::Wifn] {
        let error = metric.scores(weight.view(), &inputs(5).unwrap()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ShapeMismatch);
        let error = metric.scores(infinite.view(), &inputs(4).unwrap()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Numerical);
    }
    let uneven = InputStatistics::new(Array1::ones(2), Array1::ones(3), Array1::ones(2));
    assert_eq!(uneven.unwrap_err().kind(), ErrorKind::ShapeMismatch);
    let nan =
        InputStatistics::new(Array1::ones(2), Array1::from_elem(2, f64::NAN), Array1::ones(2));
    assert_eq!(nan.unwrap_err().kind(), ErrorKind::Numerical);
}

#[test]
fn nothing_may_go_and_equal_scores_are_no_trouble() {
    let layout = HeadLayout::new(1, 1, 4).unwrap();
    let one = [BlockScores::new(layout, vec![0.0; 4], vec![0.0])];
    for uniform in [false, true] {
        let kept = Flap::new(0.99).with_uniform(uniform).select(&one).unwrap();
        assert_eq!((&kept[0].heads[..], &kept[0].channels[..]), (&[0][..], &[0][..]));
    }
    let layout = HeadLayout::new(4, 4, 2).unwrap();
    let flat = vec![BlockScores::new(layout, vec![1.0; 8], vec![1.0; 10]); 3];
    let kept = Flap::new(0.5).with_uniform(true).select(&flat).unwrap();
    assert!(kept.iter().all(|k| k.heads == [2, 3] && k.channels == [5, 6, 7, 8, 9]));
    let whole: Vec<BlockScores> =
        flat.into_iter().map(|b| b.with_whole_attention(true).with_mlp_matrices(2)).collect();
    for uniform in [false, true] {
        let kept = Flap::new(0.3).with_uniform(uniform).select(&whole).unwrap();
        assert!(kept.iter().all(|k| k.heads.len() == 4 && k.kv_heads.len() == 4));
        assert!(kept.iter().map(|k| k.channels.len()).sum::<usize>() < 30);
    }
    assert_eq!((Flap::new(0.1).id(), Flap::new(0.1).needs().has::<Moments>()), ("flap", true));
}
