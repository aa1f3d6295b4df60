//! Scores of experts beside the official code, and what stays of experts.

use tensorpress_prune::experts::{
    Collaborative, DropExperts, ExpertScore, Reap, Stun, Usage, stick_breaking,
    stick_breaking_backward,
};
use tensorpress_tensor::ndarray::{Array2, arr2, s};
use tensorpress_tensor::rewrite::{
    BlockLayout, BlockShape, BlockView, Change, Edit, Expert, Experts, Judgement, LinearSpec,
    ModelLayout, Role,
};
use tensorpress_tensor::stats::ExpertActivity;
use tensorpress_tensor::testing::data;
use tensorpress_tensor::{Checkpoint, DType, ErrorKind, RawTensor, Rewrite, Tensor};

/// Numbers of a tensor of any type.
fn numbers(file: &Checkpoint, name: &str) -> Vec<f64> {
    let tensor = file.tensor(name).expect("a tensor of the golden file");
    let bytes = tensor.bytes();
    match tensor.dtype() {
        DType::I64 => bytes.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as f64).collect(),
        DType::I32 => {
            bytes.as_chunks().0.iter().map(|b| f64::from(i32::from_le_bytes(*b))).collect()
        }
        DType::F64 => bytes.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
        _ => tensor.to_matrix().expect("floats").iter().map(|v| f64::from(*v)).collect(),
    }
}

fn close(what: &str, ours: &[f64], official: &[f64], within: f64) {
    assert_eq!(ours.len(), official.len(), "{what}");
    for (at, (a, b)) in ours.iter().zip(official).enumerate() {
        assert!((a - b).abs() <= within * b.abs().max(1e-6), "{what} of {at}: {a}, official {b}");
    }
}

/// Statistics of REAP's own observer: factors of two experts of eight a token, as they are and renormalised.
#[test]
fn saliencies_are_those_of_the_official_code() {
    let Some(path) = data::find("golden/kv/reap_metrics.safetensors") else { return };
    let file = Checkpoint::open(&path).expect("a golden file");
    let (experts, chosen) = (8, 2);
    let selected: Vec<usize> = numbers(&file, "in.selected").iter().map(|e| *e as usize).collect();
    let logits = numbers(&file, "in.router_logits");
    let outputs = file.tensor("in.expert_outputs").expect("outputs").to_matrix().expect("floats");
    let tokens = selected.len() / chosen;
    let outputs = outputs.into_shape_with_order((experts * tokens, 48)).expect("a row a token");
    let outputs = |expert: usize| outputs.slice(s![expert * tokens..(expert + 1) * tokens, ..]);
    for renormalised in [false, true] {
        // Softmax over all, of which the chosen ones count.
        let factor = |token: usize, expert: usize| {
            let row = &logits[token * experts..(token + 1) * experts];
            let most = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let e: Vec<f64> = row.iter().map(|logit| (logit - most).exp()).collect();
            let of: f64 = match renormalised {
                true => selected[token * chosen..][..chosen].iter().map(|at| e[*at]).sum(),
                false => e.iter().sum(),
            };
            (e[expert] / of) as f32
        };
        let mut activity = ExpertActivity::new(experts);
        // In two batches, as there.
        for half in [0..tokens / 2, tokens / 2..tokens] {
            activity.route(chosen, &selected[half.start * chosen..half.end * chosen]);
            for expert in 0..experts {
                let goes = |token: &usize| selected[token * chosen..][..chosen].contains(&expert);
                let mine: Vec<usize> = half.clone().filter(goes).collect();
                let factors: Vec<f32> = mine.iter().map(|token| factor(*token, expert)).collect();
                let rows: Vec<f32> =
                    mine.iter().flat_map(|token| outputs(expert).row(*token).to_vec()).collect();
                let rows = Array2::from_shape_vec((mine.len(), 48), rows).expect("rows");
                activity.made(expert, &factors, false, rows.view());
            }
        }
        let official =
            |name: &str| numbers(&file, &format!("renorm{}.{name}", u8::from(renormalised)));
        let seen = activity.seen();
        let each = |of: &dyn Fn(usize) -> f64| (0..experts).map(of).collect::<Vec<f64>>();
        close("tokens", &[activity.tokens() as f64], &official("total_tokens"), 0.0);
        close("frequency", &each(&|e| seen[e].tokens as f64), &official("expert_frequency"), 0.0);
        let factors = official("weighted_expert_frequency_sum");
        close("factors", &each(&|e| seen[e].factors), &factors, 1e-5);
        close("norms", &each(&|e| seen[e].norms), &official("ean_sum"), 1e-5);
        close("weighted", &each(&|e| seen[e].weighted), &official("weighted_ean_sum"), 1e-5);
        close("reap", &Reap.scores(&activity), &official("reap"), 1e-5);
        let mean = each(&|e| seen[e].norms / seen[e].tokens.max(1) as f64);
        close("mean norms", &mean, &official("ean_mean"), 1e-5);
        // What the official code calls the frequency of a pair is the sum of both frequencies.
        let pairs = official("pairwise_expert_frequency");
        for (a, b) in (0..experts).flat_map(|a| (0..experts).map(move |b| (a, b))) {
            assert_eq!((seen[a].tokens + seen[b].tokens) as f64, pairs[a * experts + b]);
            let both = |of: &&[usize]| of.contains(&a) && of.contains(&b);
            let counted = selected.chunks_exact(chosen).filter(both).count();
            assert_eq!(activity.together(a, b), counted as u64, "{a} and {b}");
        }
    }
    println!("golden files checked: reap 1");
}

/// A token that an expert makes something large of counts for REAP, and not for its usage.
#[test]
fn scores_differ_in_what_they_see() {
    let mut activity = ExpertActivity::new(3);
    activity.route(1, &[0, 0, 0, 1, 2]);
    activity.made(0, &[1.0, 1.0, 1.0], false, Array2::from_elem((3, 2), 0.1).view());
    activity.made(1, &[0.5], false, Array2::from_elem((1, 2), 10.0).view());
    activity.made(2, &[1.0], false, Array2::from_elem((1, 2), 1.0).view());
    let lowest =
        |scores: Vec<f64>| (0..3).min_by(|a, b| scores[*a].total_cmp(&scores[*b])).unwrap();
    assert_eq!(lowest(Reap.scores(&activity)), 0);
    assert_ne!(lowest(Usage.scores(&activity)), 0);
    // Where factors were put on inputs, they are in the outputs.
    let mut weighed = ExpertActivity::new(1);
    weighed.route(1, &[0]);
    weighed.made(0, &[0.25], true, Array2::from_elem((1, 4), 1.0).view());
    assert_eq!((Reap.scores(&weighed), weighed.seen()[0].factors), (vec![2.0], 0.25));
    // Half of 1/5 and 0.5, beside half of 1/5 and 1.
    assert_eq!(lowest(Collaborative::default().scores(&activity)), 1);
    let often = Collaborative::default().with_share(1.0).scores(&activity);
    assert_eq!(often, Usage.scores(&activity));
}

/// Two experts of a gate and a router of three; the third of a stack.
fn layout() -> (BlockLayout, ModelLayout) {
    let expert = |index: usize, role, name: &str, shape| {
        LinearSpec::new(role, format!("l.0.e.{index}.{name}.weight"), shape)
            .with_expert(Expert::Routed(index))
    };
    let linears = (0..4).flat_map(|index| {
        [expert(index, Role::Up, "up", [6, 4]), expert(index, Role::Down, "down", [4, 6])]
    });
    let experts =
        Experts::new(4, 2, "l.0.router.weight").with_beside(["l.0.correction".to_owned()]);
    let block = BlockLayout::new(0, "l.0.", BlockShape::new(1, 1, 6), linears.collect());
    let block = block.with_experts(Some(experts));
    (block.clone(), ModelLayout::new("Some", 4, 4, vec![block]))
}

#[test]
fn experts_that_stay_take_the_numbers_of_those_that_go() {
    let (block, _) = layout();
    let edit = Edit::experts(&block, &[0, 2, 3]).expect("an edit");
    let changes = edit.changes();
    let moved = |from: &str| match changes.get(&format!("l.0.e.{from}.weight")) {
        Some(Change::Moved(to)) => to.clone(),
        Some(Change::Gone) => "gone".to_owned(),
        _ => "stays".to_owned(),
    };
    assert_eq!((moved("0.up"), moved("1.up")), ("stays".to_owned(), "gone".to_owned()));
    assert_eq!(
        (moved("2.up"), moved("3.down")),
        ("l.0.e.1.up.weight".into(), "l.0.e.2.down.weight".into())
    );
    assert!(matches!(&changes["l.0.router.weight"], Change::Rows(rows) if rows == &[0, 2, 3]));
    assert!(matches!(&changes["l.0.correction"], Change::Columns(kept) if kept == &[0, 2, 3]));
    assert_eq!(edit.shape().map(|shape| shape.experts), Some(3));
    assert!(Edit::experts(&block, &[0, 1, 2, 3]).expect("all").changes().is_empty());
    for (kept, says) in
        [(vec![1], "at least 2"), (vec![0, 4], "below 4"), (vec![2, 1], "ascending")]
    {
        let refused = Edit::experts(&block, &kept).unwrap_err();
        assert!(refused.to_string().contains(says), "{refused}");
    }
    // Of two groups, one of which may be chosen, each loses as many, and a token still finds two.
    let mut grouped = block.clone();
    grouped.experts = grouped.experts.map(|experts| experts.with_groups(2, 2, 1));
    assert!(Edit::experts(&grouped, &[0, 3]).is_ok());
    assert!(Edit::experts(&grouped, &[0, 1]).unwrap_err().to_string().contains("each group"));
    grouped.experts = grouped.experts.map(|experts| experts.with_groups(2, 1, 1));
    assert!(Edit::experts(&grouped, &[0, 3]).unwrap_err().to_string().contains("at least 4"));
}

fn tensors() -> std::collections::BTreeMap<String, RawTensor> {
    let matrix = |rows: usize, columns: usize, value: &dyn Fn(usize) -> f32| {
        let values: Vec<u8> = (0..rows * columns).flat_map(|at| value(at).to_le_bytes()).collect();
        RawTensor::new(DType::F32, vec![rows, columns], values.into()).expect("a tensor")
    };
    let mut all = std::collections::BTreeMap::new();
    // Experts 1 and 3 have like rows; 3's weights are nearer to the mean of both and of nothing else.
    let rows = [[0.0, 4.0, 0.0, 0.0], [1.0; 4], [9.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.1]];
    all.insert("l.0.router.weight".to_owned(), matrix(4, 4, &|at| rows[at / 4][at % 4]));
    for index in 0..4 {
        let value = move |at: usize| (at as f32 * 0.1 + index as f32).sin();
        all.insert(format!("l.0.e.{index}.up.weight"), matrix(6, 4, &value));
        all.insert(format!("l.0.e.{index}.down.weight"), matrix(4, 6, &value));
    }
    all
}

#[test]
fn without_tokens_a_note_says_what_was_done() {
    let (block, model) = layout();
    let tensors = tensors();
    let view = BlockView::new(&block, &tensors);
    let reap = DropExperts::<Reap>::default();
    reap.fits(&model).expect("experts");
    let judgement = reap.judge(&model, &view).expect("a judgement");
    assert!(judgement.notes()["l.0.router.weight"].contains("no finite tokens"));
    let decisions = reap.settle(&model, std::slice::from_ref(&judgement)).expect("decisions");
    assert_eq!(decisions[0].kept("experts").expect("some").len(), 3);
    // Experts that made NaN of a token are judged alike.
    let mut broken = ExpertActivity::new(4);
    broken.route(2, &[0, 1]);
    broken.made(0, &[0.5], false, Array2::from_elem((1, 4), f32::NAN).view());
    let again = reap.judge(&model, &view.with_experts(&broken)).expect("falls back");
    assert_eq!(again.values("scores").unwrap(), judgement.values("scores").unwrap());

    let stun = Stun::default();
    let judgement = stun.judge(&model, &view).expect("a judgement");
    assert!(judgement.notes()["l.0.router.weight"].contains("router alone"));
    let decisions = stun.settle(&model, &[judgement]).expect("decisions");
    let kept = decisions[0].kept("experts").expect("some");
    assert!(
        kept.contains(&0) && kept.contains(&2) && kept.len() == 3,
        "1 and 3 are alike: {kept:?}"
    );
}

#[test]
fn what_is_impossible_is_refused() {
    let (_, model) = layout();
    let mut dense = model.clone();
    dense.blocks[0].experts = None;
    let reap = |sparsity: f64| DropExperts::<Reap>::default().with_sparsity(sparsity);
    assert_eq!(reap(0.25).fits(&dense).unwrap_err().kind(), ErrorKind::Unsupported);
    let error = reap(0.8).fits(&model).unwrap_err();
    assert!(
        error.to_string().contains("2 of 4 experts") && error.to_string().contains("2 can go"),
        "{error}"
    );
    for sparsity in [-0.1, 1.0, f64::NAN] {
        assert_eq!(reap(sparsity).fits(&model).unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
    assert!(reap(0.25).settle(&model, &[]).is_err());
    assert_eq!(
        Stun::default().with_sparsity(2.0).fits(&model).unwrap_err().kind(),
        ErrorKind::InvalidArgument
    );
}

/// What stays of five experts in one group, of which so many are left.
fn left(stun: &Stun, distances: &Array2<f64>, products: &Array2<f64>, left: usize) -> Vec<usize> {
    let experts = Experts::new(5, 1, "router");
    let block = BlockLayout::new(0, "l.0.", BlockShape::new(1, 1, 6), Vec::new());
    let block = block.with_experts(Some(experts));
    let model = ModelLayout::new("Some", 4, 4, vec![block]);
    let flat = |of: &Array2<f64>| of.iter().copied().collect::<Vec<f64>>();
    let judgement = Judgement::new()
        .with_values("distances", &flat(distances))
        .with_values("products", &flat(products));
    let stun = stun.with_mean(0).with_sparsity((5 - left) as f64 / 5.0 + 1e-6);
    let decisions = stun.settle(&model, &[judgement]).expect("decisions");
    decisions[0].kept("experts").expect("some").to_vec()
}

#[test]
fn of_experts_whose_rows_are_near_one_stays() {
    // 0, 1 and 4 are near; 2 and 3 are.
    let rows = arr2(&[[0.0_f32, 0.0], [0.1, 0.0], [5.0, 5.0], [5.0, 5.2], [0.0, 0.3]]);
    let none = Array2::zeros((5, 5));
    let stun = Stun::default();
    let distances = stun.distances(rows.view(), none.view());
    // Of 0, 1 and 4 the weights of 4 are nearest to the mean; of two, none is nearer than the first.
    let weights = arr2(&[[0.0, 0.0], [1.0, 1.0], [7.0, 0.0], [7.0, 2.0], [0.6, 0.4]]);
    let products = weights.dot(&weights.t());
    assert_eq!(left(&stun, &distances, &products, 2), [2, 4]);
    assert_eq!(left(&stun, &distances, &products, 4), [0, 2, 3, 4], "0 and 1 are nearest");
    assert_eq!(left(&stun, &distances, &products, 5), [0, 1, 2, 3, 4]);
    // Tokens that always go to 2 and 4 bring these together.
    let mut often = Array2::zeros((5, 5));
    (often[[2, 4]], often[[4, 2]]) = (9.0, 9.0);
    let distances = stun.with_together(2.0).distances(rows.view(), often.view());
    assert_eq!(left(&stun, &distances, &products, 4), [0, 1, 2, 3], "2 and 4 are one");
}

/// Where few clusters are left, the mean of a cluster takes its place, and that of its rows: of all others, and where there
/// are enough, an expert stays as it is.
#[test]
fn few_clusters_keep_their_mean() {
    let (block, model) = layout();
    let tensors = tensors();
    let view = BlockView::new(&block, &tensors);
    let decided = |mean: usize| {
        let stun = Stun::default().with_mean(mean);
        let judgement = stun.judge(&model, &view).expect("a judgement");
        let decisions = stun.settle(&model, std::slice::from_ref(&judgement)).expect("decisions");
        (stun.edit(&model, &view, &judgement, &decisions[0]).expect("an edit"), decisions)
    };
    let (one, decisions) = decided(3);
    assert!(decisions[0].kept("clusters").is_err());
    assert!(!one.changes().values().any(|change| matches!(change, Change::New(_))), "three stay");
    let (edit, decisions) = decided(4);
    // 1 and 3 have like rows.
    let of = decisions[0].kept("clusters").expect("clusters");
    assert!(of[0] == 0 && of[2] == 2 && of[1] == of[3], "{of:?}");
    assert_eq!(edit.shape().map(|shape| shape.experts), Some(3));
    // In the order of the experts that stay.
    let order: Vec<Vec<usize>> = if of[1] == 1 {
        vec![vec![0], vec![1, 3], vec![2]]
    } else {
        vec![vec![0], vec![2], vec![1, 3]]
    };
    let read = |name: &str| tensors[name].to_matrix().expect("floats").mapv(f64::from);
    let new = |name: &str| match &edit.changes()[name] {
        Change::New(tensor) => tensor.to_matrix().expect("floats").mapv(f64::from),
        other => panic!("{name}: {other:?}"),
    };
    let router = (read("l.0.router.weight"), new("l.0.router.weight"));
    assert_eq!(router.1.dim(), (3, 4));
    for (at, members) in order.iter().enumerate() {
        let share = 1.0 / members.len() as f64;
        for what in ["up", "down"] {
            let name = |index: usize| format!("l.0.e.{index}.{what}.weight");
            let sum = members.iter().map(|index| read(&name(*index)));
            let mean = sum.reduce(|a, b| a + b).expect("members") * share;
            let apart = (new(&name(at)) - mean).fold(0.0_f64, |most, d| most.max(d.abs()));
            assert!(apart < 1e-6, "{what} of {at}: {apart}");
        }
        for channel in 0..4 {
            let mean = members.iter().map(|index| router.0[[*index, channel]]).sum::<f64>() * share;
            assert!((router.1[[at, channel]] - mean).abs() < 1e-6);
        }
    }
    assert!(matches!(&edit.changes()["l.0.e.3.up.weight"], Change::Gone));
}

/// A token goes to fewer experts in the proportion in which these stay, rounded up; REAP leaves it at as many.
#[test]
fn collaborative_lowers_how_many_experts_a_token_goes_to() {
    let (block, model) = layout();
    let mut many = block.clone();
    many.experts = many.experts.map(|mut experts| {
        experts.chosen = 2;
        experts
    });
    let tensors = tensors();
    let view = BlockView::new(&many, &tensors);
    let chosen = |rewrite: &dyn Rewrite| {
        let judgement = rewrite.judge(&model, &view).expect("a judgement");
        let decisions =
            rewrite.settle(&model, std::slice::from_ref(&judgement)).expect("decisions");
        let edit = rewrite.edit(&model, &view, &judgement, &decisions[0]).expect("an edit");
        let shape = edit.shape().expect("a shape").clone();
        (shape.experts, shape.chosen)
    };
    let by = |sparsity: f64| DropExperts::<Collaborative>::default().with_sparsity(sparsity);
    assert_eq!(chosen(&by(0.5)), (2, 1), "half of two");
    assert_eq!(chosen(&by(0.25)), (3, 0), "three quarters of two, rounded up, are two");
    let kept = by(0.5).with_score(Collaborative::default().with_fewer(false));
    assert_eq!(chosen(&kept), (2, 0));
    assert_eq!(chosen(&DropExperts::<Reap>::default().with_sparsity(0.5)), (2, 0));
    // DeepSeek-V3: of 256 experts 192 stay, and of eight a token goes to six.
    assert_eq!(Collaborative::default().chosen(8, 192, 256), 6);
    assert_eq!(Collaborative::default().chosen(1, 1, 64), 1);
}

/// A stick broken by the definition: the last key first, each takes its part of what is left.
#[test]
fn a_stick_is_broken_from_the_nearest_key_on() {
    let scores: Vec<f32> = (0..9).map(|i| ((i * 5) % 9) as f32 - 4.0).collect();
    let part = |s: f32| 1.0 / (1.0 + (-f64::from(s)).exp());
    for n in 0..scores.len() {
        let scores = &scores[..n];
        let weights = stick_breaking(scores);
        for j in 0..n {
            let later: f64 = scores[j + 1..].iter().map(|s| 1.0 - part(*s)).product();
            let wanted = part(scores[j]) * later;
            assert!((f64::from(weights[j]) - wanted).abs() < 1e-7, "{j} of {n}: {wanted}");
        }
        // Nothing is normalised: what no key took is left.
        let left: f64 = scores.iter().map(|s| 1.0 - part(*s)).product();
        let sum: f64 = weights.iter().map(|w| f64::from(*w)).sum();
        assert!((sum - (1.0 - left)).abs() < 1e-6);
    }
    assert_eq!(stick_breaking(&[0.0, f32::INFINITY, f32::NEG_INFINITY]), [0.0, 1.0, 0.0]);
    // A long way back nothing overflows, and nothing is NaN.
    assert!(stick_breaking(&[80.0; 500]).iter().all(|w| (0.0..=1.0).contains(w)));
    // Gradients by differences.
    let by = [0.5f32, -1.0, 2.0, 0.25, -3.0, 1.0, 0.0, 4.0, -0.5];
    let loss = |scores: &[f32]| -> f64 {
        stick_breaking(scores).iter().zip(by).map(|(w, b)| f64::from(*w) * f64::from(b)).sum()
    };
    let gradient = stick_breaking_backward(&scores, &by);
    for k in 0..scores.len() {
        let moved = |step: f32| {
            let mut scores = scores.clone();
            scores[k] += step;
            loss(&scores)
        };
        let wanted = (moved(0.0625) - moved(-0.0625)) / 0.125;
        assert!((f64::from(gradient[k]) - wanted).abs() < 2e-3, "{k}: {} {wanted}", gradient[k]);
    }
}
