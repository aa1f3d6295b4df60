//! Scores of micro-experts beside slow references, who competes with whom, and what an edit leaves.

mod mixture;

use std::collections::BTreeMap;

use mixture::*;
use proptest::prelude::*;
use tensorpress_prune::experts::micro::{
    Choice, Energy, MicroScore, Rival, SlimExperts, bands, camera, heapr, slim_moe, stages,
};
use tensorpress_tensor::linalg::SplitMix;
use tensorpress_tensor::ndarray::{Array2, Axis};
use tensorpress_tensor::rewrite::{
    BlockLayout, BlockShape, BlockView, Change, Edit, Expert, Experts, Judgement, LinearSpec,
    ModelLayout, Place, Role,
};
use tensorpress_tensor::stats::Supply;
use tensorpress_tensor::{DType, ErrorKind, RawTensor, Rewrite};

fn close(what: &str, ours: &[f64], slow: &[f64]) {
    assert_eq!(ours.len(), slow.len(), "{what}");
    for (at, (a, b)) in ours.iter().zip(slow).enumerate() {
        assert!((a - b).abs() <= 1e-4 * b.abs() + 1e-9, "{what}, {at}: {a}, slow {b}");
    }
}

fn order(scores: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]));
    order
}

/// Σ over tokens, in f64, token by token. Each part of the score decides: without the factor, the largest token or the
/// column the order is another.
#[test]
fn camera_is_energy_with_factors_peaks_and_columns() {
    let (weights, tokens) = (weights(1), tokens(2));
    let (block, model) = layout();
    let tensors = stored(&weights);
    for (weighed, peak) in [(false, 0.9), (false, 0.0), (true, 0.9), (false, 1.0)] {
        let activity = activity(&weights, &tokens, weighed);
        let view = BlockView::new(&block, &tensors).with_experts(&activity);
        let camera = camera().with_score(Energy::default().with_peak(peak));
        let ours = camera.judge(&model, &view).unwrap();
        assert!(ours.notes().is_empty());
        let slow = |with_factor: bool, with_peak: f64, with_column: bool| {
            let mut all = Vec::new();
            for (expert, width) in WIDTHS.iter().enumerate() {
                for channel in 0..*width {
                    let (mut sum, mut most) = (0.0, 0.0_f64);
                    for t in 0..40 {
                        for (of, factor) in tokens.chosen[t].iter().zip(tokens.factors[t]) {
                            if *of != expert {
                                continue;
                            }
                            let factor = f64::from(factor);
                            let on_x = if weighed { factor } else { 1.0 };
                            let x = tokens.x.row(t).mapv(|v| f64::from(v) * on_x);
                            let sent = phi(&weights, expert, channel, &x)
                                * if weighed || !with_factor { 1.0 } else { factor };
                            sum += sent * sent;
                            most = most.max(sent * sent);
                        }
                    }
                    let column = weights[&format!("l.0.e.{expert}.down.weight")].column(channel);
                    let length: f64 = column.iter().map(|w| f64::from(*w).powi(2)).sum();
                    let energy = (1.0 - with_peak) * sum + with_peak * most;
                    all.push(energy * if with_column { length } else { 1.0 });
                }
            }
            all
        };
        let scores = ours.values("scores").unwrap();
        close("energy", &scores, &slow(true, peak, true));
        if !weighed && peak == 0.9 {
            let full = order(&scores);
            assert_ne!(full, order(&slow(false, peak, true)), "the factor decides");
            assert_ne!(full, order(&slow(true, 0.0, true)), "the largest token decides");
            assert_ne!(full, order(&slow(true, peak, false)), "the column decides");
        }
        // Nobody went to the third.
        assert!(scores[11..17].iter().all(|score| *score == 0.0) && scores[0] > 0.0);
    }
}

/// ½ E[eᵀ G e] of outputs e that are made, token by token. Without G (that is, by the identity) the order is another, and
/// where only its diagonal is known, that counts.
#[test]
fn heapr_is_half_the_mean_of_a_quadratic_form_of_outputs() {
    let (weights, tokens) = (weights(3), tokens(4));
    let (block, model) = layout();
    let (tensors, activity) = (stored(&weights), activity(&weights, &tokens, false));
    let mut draw = SplitMix::new(5);
    // Gradients of very different size in each direction, of the tokens that went there; others add 0 to the mean.
    let mut gradients = BTreeMap::new();
    for expert in 0..WIDTHS.len() {
        let went = |t: &usize| tokens.chosen[*t].contains(&expert);
        let count = (0..40).filter(went).count();
        let mut of = random(count, HIDDEN, &mut draw);
        of.column_mut(expert % HIDDEN).mapv_inplace(|g| 20.0 * g);
        gradients.insert(expert, of);
    }
    let moment = |expert: usize| {
        let of = gradients[&expert].mapv(f64::from);
        of.t().dot(&of) / 40.0
    };
    let scores = |diagonal: bool| {
        let known = (0..WIDTHS.len()).map(|expert| {
            let all = moment(expert).mapv(|g| g as f32);
            let known = if diagonal { all.diag().to_owned().insert_axis(Axis(0)) } else { all };
            (format!("l.0.e.{expert}.down.weight"), known)
        });
        let inputs = inputs(Known(Supply::OUTPUT_FISHER, known.collect()));
        let view = BlockView::new(&block, &tensors).with_experts(&activity).with_inputs(&inputs);
        let judgement = heapr().judge(&model, &view).unwrap();
        assert!(judgement.notes().is_empty(), "{:?}", judgement.notes());
        judgement.values("scores").unwrap()
    };
    let slow = |of: &dyn Fn(usize) -> Array2<f64>| {
        let mut all = Vec::new();
        for (expert, width) in WIDTHS.iter().enumerate() {
            let gram = of(expert);
            for channel in 0..*width {
                let column = weights[&format!("l.0.e.{expert}.down.weight")].column(channel);
                let (mut sum, mut count) = (0.0, 0);
                for t in (0..40).filter(|t| tokens.chosen[*t].contains(&expert)) {
                    let phi = phi(&weights, expert, channel, &tokens.x.row(t).mapv(f64::from));
                    let made = column.mapv(|w| phi * f64::from(w));
                    sum += 0.5 * made.dot(&gram.dot(&made));
                    count += 1;
                }
                all.push(sum / f64::from(count.max(1)));
            }
        }
        all
    };
    let full = scores(false);
    close("loss", &full, &slow(&moment));
    let diagonal = |expert: usize| Array2::from_diag(&moment(expert).diag());
    close("loss by the diagonal", &scores(true), &slow(&diagonal));
    assert_ne!(order(&full), order(&slow(&|_| Array2::eye(HIDDEN))), "gradients decide");
}

/// The loss is linear in the weights, so that what it moves by when a micro-expert goes is known. Parts that cancel leave
/// nothing: a sum of magnitudes would have kept that micro-expert.
#[test]
fn slim_moe_is_what_the_loss_moves_by_when_all_of_it_goes() {
    let mut weights = weights(6);
    let (block, model) = layout();
    let mut draw = SplitMix::new(7);
    let mut slopes: Weights = weights
        .iter()
        .map(|(name, of)| (name.clone(), random(of.nrows(), of.ncols(), &mut draw)))
        .collect();
    // The third micro-expert of the first expert: large, and balanced.
    let name = |what: &str| format!("l.0.e.0.{what}.weight");
    for (what, sign) in [("gate", 3.0), ("up", -3.0)] {
        weights.get_mut(&name(what)).unwrap().row_mut(2).fill(1.0);
        slopes.get_mut(&name(what)).unwrap().row_mut(2).fill(sign);
    }
    weights.get_mut(&name("down")).unwrap().column_mut(2).fill(0.0);
    let loss = |weights: &Weights| -> f64 {
        let of = |(name, weight): (&String, &Array2<f32>)| {
            let pairs = weight.iter().zip(&slopes[name]);
            pairs.map(|(w, g)| f64::from(*w) * f64::from(*g)).sum::<f64>()
        };
        weights.iter().map(of).sum()
    };
    let mut slow = Vec::new();
    for (expert, width) in WIDTHS.iter().enumerate() {
        for channel in 0..*width {
            let mut without = weights.clone();
            for what in ["gate", "up"] {
                let name = format!("l.0.e.{expert}.{what}.weight");
                without.get_mut(&name).unwrap().row_mut(channel).fill(0.0);
            }
            let down = format!("l.0.e.{expert}.down.weight");
            without.get_mut(&down).unwrap().column_mut(channel).fill(0.0);
            slow.push((loss(&without) - loss(&weights)).abs());
        }
    }
    let (tensors, inputs) = (stored(&weights), inputs(Known(Supply::GRADIENT, slopes)));
    let view = BlockView::new(&block, &tensors).with_inputs(&inputs);
    let judgement = slim_moe().judge(&model, &view).unwrap();
    assert!(judgement.notes().is_empty());
    let scores = judgement.values("scores").unwrap();
    close("loss", &scores, &slow);
    assert!(scores[2] < 1e-9 && order(&scores[..7])[0] == 2, "{scores:?}");
    // Of each expert as many go: ⌊width / 2⌋, and one of one stays.
    let decisions = slim_moe().with_sparsity(0.5).settle(&model, &[judgement]).unwrap();
    assert_eq!(decisions[0].kept("widths").unwrap(), [4, 2, 3, 1]);
}

fn block_of(scores: &[Vec<f64>]) -> Rival {
    Rival::new(scores.to_vec())
}

/// The same by going through all scores of the pool, one removal after the other.
fn slow_widths(sparsity: f64, pool: &[Vec<f64>]) -> Vec<usize> {
    let all: usize = pool.iter().map(Vec::len).sum();
    let mut left: Vec<Vec<Option<f64>>> =
        pool.iter().map(|of| of.iter().map(|score| Some(*score)).collect()).collect();
    for _ in 0..(all as f64 * sparsity + 1e-9) as usize {
        let mut least: Option<(f64, usize, usize)> = None;
        for (expert, scores) in left.iter().enumerate() {
            if scores.iter().flatten().count() < 2 {
                continue;
            }
            for (channel, score) in scores.iter().enumerate() {
                let Some(score) = score else { continue };
                if least.is_none_or(|least| *score <= least.0) {
                    least = Some((*score, expert, channel));
                }
            }
        }
        if let Some((_, expert, channel)) = least {
            left[expert][channel] = None;
        }
    }
    left.iter().map(|scores| scores.iter().flatten().count()).collect()
}

proptest! {
    #[test]
    fn the_lowest_of_each_pool_go(
        widths in proptest::collection::vec(1usize..6, 1..5),
        levels in 1u64..40,
        seed in 0u64..1000,
        sparsity in 0.0f64..0.99,
    ) {
        let mut draw = SplitMix::new(seed);
        let mut scores = || -> Vec<Vec<f64>> {
            let mut of = |width: &usize| -> Vec<f64> {
                (0..*width).map(|_| (draw.next_u64() % levels) as f64).collect()
            };
            widths.iter().map(&mut of).collect()
        };
        let (one, two) = (scores(), scores());
        let blocks = [block_of(&one), block_of(&two)];
        let slow = |pool: &[Vec<f64>]| slow_widths(sparsity, pool);
        let by_block = Choice::Block.widths(sparsity, &blocks);
        prop_assert_eq!(&by_block, &vec![slow(&one), slow(&two)]);
        let by_expert = Choice::Expert.widths(sparsity, &blocks);
        let each: Vec<usize> = one.iter().flat_map(|of| slow(std::slice::from_ref(of))).collect();
        prop_assert_eq!(&by_expert[0], &each);
        let together = slow(&[one.clone(), two.clone()].concat());
        let by_model = Choice::Model.widths(sparsity, &blocks);
        prop_assert_eq!(by_model.concat(), together);
        // One that is judged by something else competes with none, and takes nothing from the others.
        let alone = [block_of(&one).with_alone(true), block_of(&two)];
        prop_assert_eq!(Choice::Model.widths(sparsity, &alone), by_block.clone());
        // As wide as each other: no fewer than the choice left, less than one more of each.
        let alike = vec![vec![0.5; 4]; widths.len()];
        let mut uneven = alike.clone();
        uneven[0] = vec![2.0; 4];
        let even = Choice::Block.widths(sparsity, &[block_of(&uneven).with_even(true)]);
        let kept: usize = slow(&uneven).iter().sum();
        prop_assert!(even[0].iter().all(|width| *width == even[0][0]));
        let all: usize = even[0].iter().sum();
        prop_assert!(all >= kept && all < kept + widths.len());
    }
}

/// HEAPr ranks all of the model, CAMERA those of a block, SlimMoE those of an expert: what each leaves of the same scores.
#[test]
fn who_competes_with_whom_is_the_methods() {
    let block = |scale: f64| {
        block_of(&[[6.0, 5.0, 4.0], [3.0, 2.0, 1.0]].map(|of| of.map(|s| scale * s).to_vec()))
    };
    let blocks = [block(1.0), block(10.0)];
    assert_eq!(camera().choice.widths(0.5, &blocks), [vec![2, 1], vec![2, 1]]);
    assert_eq!(heapr().choice.widths(0.5, &blocks), [vec![1, 1], vec![3, 1]]);
    assert_eq!(slim_moe().choice.widths(0.5, &blocks), [vec![2, 2], vec![2, 2]]);
}

#[test]
fn an_edit_cuts_rows_biases_and_columns() {
    let (block, _) = layout();
    let kept = vec![vec![0, 3, 6], vec![0, 1, 2, 3], vec![5], vec![0]];
    let edit = Edit::expert_channels(&block, &kept).unwrap();
    let changes = edit.changes();
    for what in ["gate", "up"] {
        let name = format!("l.0.e.0.{what}");
        assert!(matches!(&changes[&format!("{name}.weight")], Change::Rows(of) if *of == kept[0]));
        assert!(matches!(&changes[&format!("{name}.bias")], Change::Columns(of) if *of == kept[0]));
    }
    assert!(matches!(&changes["l.0.e.2.down.weight"], Change::Columns(of) if *of == [5]));
    assert!(!changes.keys().any(|name| name.contains("e.1.") || name.contains("e.3.")));
    assert!(!changes.contains_key("l.0.e.0.down.bias"));
    assert_eq!(edit.shape().unwrap().expert_widths, [3, 4, 1, 1]);
    // Dropping an expert takes its width along.
    let mut narrow = block.clone();
    narrow.shape = edit.shape().unwrap().clone();
    let dropped = Edit::experts(&narrow, &[0, 2, 3]).unwrap();
    assert_eq!(dropped.shape().unwrap().expert_widths, [3, 1, 1]);
    let whole: Vec<Vec<usize>> = WIDTHS.iter().map(|width| (0..*width).collect()).collect();
    assert!(Edit::expert_channels(&block, &whole).unwrap().changes().is_empty());
    let refused = |kept: Vec<Vec<usize>>| Edit::expert_channels(&block, &kept).unwrap_err();
    for kept in [
        vec![vec![0]; 3],
        vec![vec![0], vec![4], vec![0], vec![0]],
        vec![vec![0], vec![], vec![0], vec![0]],
        vec![vec![1, 0], vec![0], vec![0], vec![0]],
    ] {
        assert!(refused(kept).to_string().contains("for each of 4 experts"));
    }
    let mut dense = block;
    dense.experts = None;
    assert_eq!(Edit::expert_channels(&dense, &[]).unwrap_err().kind(), ErrorKind::Unsupported);
}

/// Two experts in stacks, gate and up in one matrix; transposed, with biases.
fn stacked(alternating: bool) -> BlockLayout {
    let one = |index: usize, role, name: &str, shape| {
        let place = Place {
            tensor: format!("l.0.{name}"),
            bias: Some(format!("l.0.{name}_bias")),
            index: Some(index),
            transposed: true,
        };
        LinearSpec::new(role, format!("l.0.{name}.{index}.weight"), shape)
            .with_expert(Expert::Routed(index))
            .with_place(place)
    };
    let linears = (0..2).flat_map(|index| {
        [one(index, Role::GateUp, "both", [6, HIDDEN]), one(index, Role::Down, "down", [HIDDEN, 3])]
    });
    let experts = Experts::new(2, 1, "l.0.router.weight").with_alternating(alternating);
    BlockLayout::new(0, "l.0.", BlockShape::new(1, 1, 3), linears.collect())
        .with_experts(Some(experts))
}

#[test]
fn stacks_are_cut_in_each_part_by_itself() {
    for (alternating, rows) in [
        (true, vec![vec![0, 1, 4, 5], vec![2, 3, 4, 5]]),
        (false, vec![vec![0, 2, 3, 5], vec![1, 2, 4, 5]]),
    ] {
        let block = stacked(alternating);
        let kept = vec![vec![0, 2], vec![1, 2]];
        let edit = Edit::expert_channels(&block, &kept).unwrap();
        let within = |name: &str| match &edit.changes()[name] {
            Change::Within { axis, kept } => (*axis, kept.clone()),
            other => panic!("{other:?}"),
        };
        assert_eq!(within("l.0.both"), (2, rows.clone()));
        assert_eq!(within("l.0.both_bias"), (1, rows));
        assert_eq!(within("l.0.down"), (1, kept));
        assert!(!edit.changes().contains_key("l.0.down_bias"));
        let uneven = Edit::expert_channels(&block, &[vec![0], vec![1, 2]]).unwrap_err();
        assert!(uneven.to_string().contains("as many channels of each expert"), "{uneven}");
    }
    // Scores of a stack are those of its parts: the norm of a channel's two rows and its column.
    for alternating in [true, false] {
        let (block, mut draw) = (stacked(alternating), SplitMix::new(8));
        let (both, down) = (random(2 * HIDDEN, 6, &mut draw), random(2 * 3, HIDDEN, &mut draw));
        let stack = |of: &Array2<f32>, rows: usize| {
            let bytes: Vec<u8> = of.iter().flat_map(|value| value.to_le_bytes()).collect();
            RawTensor::new(DType::F32, vec![2, rows, of.ncols()], bytes.into()).unwrap()
        };
        let tensors = BTreeMap::from([
            ("l.0.both".to_owned(), stack(&both, HIDDEN)),
            ("l.0.down".to_owned(), stack(&down, 3)),
        ]);
        let model = ModelLayout::new("Some", HIDDEN, HIDDEN, vec![block.clone()]);
        let judgement = camera().judge(&model, &BlockView::new(&block, &tensors)).unwrap();
        let mut slow = Vec::new();
        for (expert, channel) in (0..2).flat_map(|e| (0..3).map(move |c| (e, c))) {
            let pair =
                if alternating { [2 * channel, 2 * channel + 1] } else { [channel, 3 + channel] };
            let columns = pair.map(|at| {
                both.slice_axis(Axis(0), (expert * HIDDEN..(expert + 1) * HIDDEN).into())
                    .column(at)
                    .to_owned()
            });
            let row = down.row(expert * 3 + channel).to_owned();
            let all = columns.iter().chain([&row]).flat_map(|of| of.iter().copied());
            slow.push(all.map(|w| f64::from(w).powi(2)).sum::<f64>());
        }
        close("norms", &judgement.values("scores").unwrap(), &slow);
        let decisions =
            camera().with_sparsity(0.5).settle(&model, std::slice::from_ref(&judgement)).unwrap();
        assert_eq!(decisions[0].kept("widths").unwrap(), [2, 2], "three of six, rounded up");
        let view = BlockView::new(&block, &tensors);
        let edit = camera().edit(&model, &view, &judgement, &decisions[0]).unwrap();
        assert!(edit.notes().values().any(|note| note.contains("as many channels of each")));
    }
}

#[test]
fn without_what_they_judge_by_norms_do_and_a_note_says_so() {
    let weights = weights(9);
    let (block, model) = layout();
    let tensors = stored(&weights);
    let view = BlockView::new(&block, &tensors);
    let mut slow = Vec::new();
    for (expert, width) in WIDTHS.iter().enumerate() {
        for channel in 0..*width {
            let name = |what: &str| &weights[&format!("l.0.e.{expert}.{what}.weight")];
            let (gate, up, down) =
                (name("gate").row(channel), name("up").row(channel), name("down").column(channel));
            let all = gate.iter().chain(up).chain(down);
            slow.push(all.map(|w| f64::from(*w).powi(2)).sum::<f64>());
        }
    }
    let check = |judgement: &Judgement, says: &str| {
        close("norms", &judgement.values("scores").unwrap(), &slow);
        assert_eq!(judgement.notes().len(), 4);
        assert!(judgement.notes()["l.0.e.1.down.weight"].contains(says), "{:?}", judgement.notes());
    };
    check(&camera().judge(&model, &view).unwrap(), "no finite tokens were seen");
    check(&slim_moe().judge(&model, &view).unwrap(), "no gradient was supplied");
    let seen = activity(&weights, &tokens(10), false);
    check(&heapr().judge(&model, &view.with_experts(&seen)).unwrap(), "no output_fisher");
    let mut broken = seen.clone();
    broken.inside(1, &[1.0], false, Array2::from_elem((1, 4), f32::NAN).view());
    let view = BlockView::new(&block, &tensors);
    check(&camera().judge(&model, &view.with_experts(&broken)).unwrap(), "no finite tokens");
    // Of one expert alone, where experts do not compete.
    let mut slopes: Weights = weights.clone();
    slopes.remove("l.0.e.1.up.weight");
    let inputs = inputs(Known(Supply::GRADIENT, slopes));
    let some = slim_moe().judge(&model, &view.with_inputs(&inputs)).unwrap();
    assert_eq!(some.notes().keys().collect::<Vec<_>>(), ["l.0.e.1.down.weight"]);
    let all = SlimExperts::new("mine", slim_moe().score, Choice::Block);
    assert_eq!(all.judge(&model, &view.with_inputs(&inputs)).unwrap().notes().len(), 4);
    // Weights that are not finite are an error that names them.
    let mut tensors = tensors.clone();
    let bad = Array2::from_elem((HIDDEN, 4), f32::NAN);
    tensors.insert("l.0.e.1.down.weight".to_owned(), raw(&bad));
    let error = camera().judge(&model, &BlockView::new(&block, &tensors)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Numerical);
    assert!(error.to_string().contains("l.0.e.1.down.weight"), "{error}");
}

#[test]
fn what_is_absurd_is_refused() {
    let (_, model) = layout();
    for sparsity in [-0.1, 1.0, f64::NAN] {
        let error = heapr().with_sparsity(sparsity).fits(&model).unwrap_err();
        assert!(error.to_string().contains("sparsity"), "{error}");
    }
    for peak in [-0.1, 1.1, f64::NAN] {
        let score = Energy::default().with_peak(peak);
        let error = camera().with_score(score).fits(&model).unwrap_err();
        assert!(error.to_string().contains("peak"), "{error}");
        assert!(score.check().is_err());
    }
    let mut dense = model.clone();
    dense.blocks[0].experts = None;
    assert_eq!(camera().fits(&dense).unwrap_err().kind(), ErrorKind::Unsupported);
    assert!(camera().settle(&model, &[]).is_err());
    for (from, to, steps) in [(4, 5, 1), (4, 0, 1), (4, 2, 0)] {
        assert_eq!(stages(from, to, steps).unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
    for shares in [&[0.5, 0.4][..], &[1.5, -0.5], &[f64::NAN], &[]] {
        assert_eq!(bands(&[1.0], shares).unwrap_err().kind(), ErrorKind::InvalidArgument);
    }
    assert_eq!(bands(&[f64::NAN], &[1.0]).unwrap_err().kind(), ErrorKind::Numerical);
}

proptest! {
    /// Each stage keeps the same share, to a channel; the last is what was asked for.
    #[test]
    fn stages_fall_evenly(from in 1usize..5000, part in 0.01f64..1.0, steps in 1usize..6) {
        let to = ((from as f64 * part) as usize).max(1);
        let widths = stages(from, to, steps).unwrap();
        prop_assert_eq!((widths.len(), widths[steps - 1]), (steps, to));
        let share = (to as f64 / from as f64).powf(1.0 / steps as f64);
        let mut exact = from as f64;
        for width in widths {
            exact *= share;
            prop_assert!((width as f64 - exact).abs() <= 0.5 + 1e-6, "{} {}", width, exact);
        }
    }

    /// Bands fall with scores, and have their shares to half a micro-expert.
    #[test]
    fn bands_are_ranked(scores in proptest::collection::vec(0.0f64..9.0, 0..40), first in 0.0f64..0.5, second in 0.0f64..0.5) {
        let shares = [first, second, 1.0 - first - second];
        let of = bands(&scores, &shares).unwrap();
        let mut up_to = 0.0;
        for band in 0..3 {
            up_to += shares[band] * scores.len() as f64;
            let within = of.iter().filter(|b| **b <= band).count() as f64;
            prop_assert!((within - up_to).abs() <= 0.5 + 1e-6);
        }
        for (a, b) in (0..scores.len()).flat_map(|a| (0..scores.len()).map(move |b| (a, b))) {
            prop_assert!(scores[a] <= scores[b] || of[a] <= of[b]);
        }
    }
}
