//! Graphs of operators against a slow interpreter.

use tensorpress_prune::train::graph::{Graph, Op};
use tensorpress_prune::train::{HalfSpace, Salience};
use tensorpress_tensor::linalg::{SplitMix, gaussian};
use tensorpress_tensor::{Error, ErrorKind};

fn random(length: usize, seed: u64) -> Vec<f32> {
    (0..length).map(|i| gaussian(seed, i as u64) as f32).collect()
}

fn kind(error: &Error, kind: ErrorKind, part: &str) {
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(part), "{error}");
}

/// What a graph computes, node by node, in f64. An activation that keeps 0 is ReLU, else a sigmoid.
fn run(graph: &Graph, variables: &[f32], input: &[f64]) -> Vec<f64> {
    let v = |at: usize| f64::from(variables[at]);
    let mut values: Vec<Vec<f64>> = Vec::new();
    for node in graph.nodes() {
        let of = |i: usize| &values[node.inputs[i]];
        values.push(match node.op {
            Op::Input => input.to_vec(),
            Op::Linear { weight, bias, out, inputs } => (0..out)
                .map(|r| {
                    (0..inputs).map(|c| v(weight + r * inputs + c) * of(0)[c]).sum::<f64>()
                        + v(bias + r)
                })
                .collect(),
            Op::Affine { gain, bias } => {
                of(0).iter().enumerate().map(|(i, x)| v(gain + i) * x + v(bias + i)).collect()
            }
            Op::Activation(true) => of(0).iter().map(|x| x.max(0.0)).collect(),
            Op::Activation(false) => of(0).iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect(),
            Op::Add => {
                (0..node.width()).map(|c| (0..node.inputs.len()).map(|i| of(i)[c]).sum()).collect()
            }
            Op::Concat => node.inputs.iter().flat_map(|i| values[*i].clone()).collect(),
            Op::Repeat(times) => of(0).iter().flat_map(|x| vec![*x; times]).collect(),
            Op::Output => of(0).clone(),
            _ => panic!("{:?}", node.op),
        });
    }
    let last = graph.nodes().iter().rposition(|node| node.op == Op::Output).unwrap();
    values.swap_remove(last)
}

/// A residual block, heads, a concatenation, a sigmoid, a flattened picture, and two linears side by side.
fn network() -> Graph {
    let mut graph = Graph::new();
    let x = graph.input(4);
    let stem = graph.linear(x, 6);
    let stem = graph.affine(stem);
    let stem = graph.activation(stem, true);
    let heads = graph.linear(stem, 6);
    graph.tie(heads, 2).unwrap();
    let left = graph.linear(heads, 6);
    let left = graph.affine(left);
    let right = graph.linear(stem, 6);
    let right = graph.activation(right, true);
    let sum = graph.add(&[stem, left, right]).unwrap();
    let shut = graph.linear(sum, 2);
    let shut = graph.activation(shut, false);
    let both = graph.concat(&[sum, shut]);
    let flat = graph.repeat(both, 3);
    let hidden = graph.linear(flat, 5);
    let hidden = graph.activation(hidden, true);
    let last = graph.linear(hidden, 3);
    graph.output(last);
    graph
}

/// OTOv2's partition. Fails if a bias, a γ or a β is left out, if what a sum ties is not tied, if heads are cut, or if
/// the outputs or what a sigmoid lifts from 0 may go.
#[test]
fn zero_invariant_groups_are_what_makes_a_channel() {
    let graph = network();
    let groups = graph.channels().unwrap();
    // 6 of the stem and all that is added to it, 3 heads, 5 hidden ones.
    assert_eq!(groups.len(), 6 + 3 + 5);
    let sizes: Vec<usize> = (0..14).map(|g| groups.members(g).len()).collect();
    // The stem's row of 4, a bias, γ and β; the left row of 6 with those; the right row of 6 with its bias.
    assert_eq!(sizes[..6], [4 + 1 + 2 + 6 + 1 + 2 + 6 + 1; 6]);
    assert_eq!(sizes[6..9], [2 * (6 + 1); 3]);
    assert_eq!(sizes[9..], [3 * (6 + 2) + 1; 5]);
}

/// OTOv2's removal, every set of groups alone and many together: at 0 they change nothing when they go. Fails if
/// columns that read them stay out of step.
#[test]
fn the_smaller_network_computes_the_same() {
    let graph = network();
    let groups = graph.channels().unwrap();
    let mut differ = 0;
    for seed in 0..60u64 {
        let mut x = random(graph.variables(), seed);
        let mut bits = SplitMix::new(seed);
        let gone: Vec<usize> = match seed {
            0..14 => vec![seed as usize],
            _ => (0..14).filter(|_| bits.next_u64().is_multiple_of(3)).collect(),
        };
        let input: Vec<f64> = (0..4).map(|i| gaussian(seed + 900, i)).collect();
        let whole = run(&graph, &x, &input);
        gone.iter().for_each(|g| groups.scale(&mut x, *g, 0.0));
        let wanted = run(&graph, &x, &input);
        differ += usize::from(whole != wanted);
        let (smaller, values) = graph.without(&x, &gone, &[]).unwrap();
        assert_eq!(smaller.variables(), values.len());
        assert!(gone.is_empty() || values.len() < x.len());
        let ours = run(&smaller, &values, &input);
        assert!(ours.iter().zip(&wanted).all(|(a, b)| (a - b).abs() < 1e-9), "{gone:?}");
        // What is left can be cut further.
        assert_eq!(smaller.channels().unwrap().len(), 14 - gone.len());
    }
    assert!(differ > 40, "{differ}: the rest lay behind an activation that was 0 anyhow");
}

/// OTOv3's operators. Fails if the sum's other branches are touched, or an operator that nothing replaces is erasable.
#[test]
fn erased_operators_leave_the_sum_of_the_others() {
    let graph = network();
    let operators = graph.operators();
    // left and right: with their affine operator and activation.
    assert_eq!(operators.len(), 2);
    assert_eq!(operators.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2]);
    let groups = graph.erasable().unwrap();
    for erased in [vec![0], vec![1], vec![0, 1]] {
        let mut x = random(graph.variables(), 70);
        erased.iter().for_each(|g| groups.scale(&mut x, *g, 0.0));
        let (smaller, values) = graph.without(&x, &[], &erased).unwrap();
        let input: Vec<f64> = (0..4).map(|i| gaussian(71, i)).collect();
        let (ours, wanted) = (run(&smaller, &values, &input), run(&graph, &x, &input));
        assert!(ours.iter().zip(&wanted).all(|(a, b)| (a - b).abs() < 1e-9), "{erased:?}");
        // Without left, nobody reads the heads.
        let linears = |graph: &Graph| {
            graph.nodes().iter().filter(|n| matches!(n.op, Op::Linear { .. })).count()
        };
        let fewer = linears(&graph) - linears(&smaller);
        assert_eq!(fewer, erased.len() + usize::from(erased.contains(&0)), "{erased:?}");
    }
}

/// OTOv3, a whole run: half-space steps on the operators that the hierarchy check allows, until they are 0, and the
/// network without them. Fails if operators' groups and half-spaces do not fit together.
#[test]
fn operators_are_led_to_zero_and_erased() {
    let graph = network();
    let groups = graph.erasable().unwrap();
    let mut x = random(graph.variables(), 80);
    let gradient = |x: &[f32]| -> Vec<f32> { x.iter().map(|x| 0.05 * x).collect() };
    let scores = Salience::default().scores(&x, &gradient(&x), &groups).unwrap();
    let go = graph.redundant_operators(&scores, 1).unwrap();
    let rule = HalfSpace::default().with_epsilon(0.05);
    let mut steps = 0;
    while go.iter().any(|g| groups.norm(&x, *g) > 0.0) {
        let slope = gradient(&x);
        rule.step(&mut x, &slope, 0.1, &groups, &go).unwrap();
        steps += 1;
        assert!(steps < 500);
    }
    assert!(steps > 2 && groups.norm(&x, 1 - go[0]) > 0.0);
    let (smaller, values) = graph.without(&x, &[], &go).unwrap();
    let input = [0.3, -1.0, 0.5, 2.0];
    let (ours, wanted) = (run(&smaller, &values, &input), run(&graph, &x, &input));
    assert!(ours.iter().zip(&wanted).all(|(a, b)| (a - b).abs() < 1e-9));
}

/// OTOv3's validity. Fails if the least salient operators go, whatever is left.
#[test]
fn a_way_from_input_to_output_is_left() {
    let mut graph = Graph::new();
    let x = graph.input(3);
    let choices: Vec<_> = (0..3).map(|_| graph.linear(x, 4)).collect();
    let sum = graph.add(&choices).unwrap();
    let more: Vec<_> = (0..2).map(|_| graph.linear(sum, 2)).collect();
    let sum = graph.add(&more).unwrap();
    graph.output(sum);
    assert!(graph.is_connected(&[0, 2, 4]).unwrap());
    assert!(!graph.is_connected(&[0, 1, 2]).unwrap());
    let erased = graph.redundant_operators(&[1.0, 2.0, 3.0, 5.0, 4.0], 5).unwrap();
    assert_eq!(erased, [0, 1, 4]);
    assert_eq!(graph.redundant_operators(&[3.0, 2.0, 1.0, 5.0, 4.0], 2).unwrap(), [1, 2]);
    let values = random(graph.variables(), 1);
    let error = graph.without(&values, &[], &[3, 4]).unwrap_err();
    kind(&error, ErrorKind::InvalidArgument, "leave a way");
    let (smaller, values) = graph.without(&values, &[], &erased).unwrap();
    assert_eq!(values.len(), 4 * 3 + 4 + 2 * 4 + 2);
    assert!(smaller.operators().is_empty());
}

#[test]
fn no_node_loses_its_last_channel() {
    let mut graph = Graph::new();
    let x = graph.input(2);
    let a = graph.linear(x, 3);
    let a = graph.activation(a, true);
    let b = graph.linear(a, 2);
    let c = graph.linear(b, 1);
    graph.output(c);
    let redundant = graph.redundant_channels(&[1.0, 2.0, 3.0, 0.5, 0.4], 99).unwrap();
    assert_eq!(redundant, [0, 1, 4]);
    assert_eq!(graph.redundant_channels(&[1.0, 2.0, 3.0, 0.5, 0.4], 2).unwrap(), [0, 4]);
}

#[test]
fn errors_say_what_is_allowed() {
    use ErrorKind::{InvalidArgument, Numerical, ShapeMismatch};
    let mut graph = network();
    let values = random(graph.variables(), 1);
    kind(&graph.add(&[]).unwrap_err(), InvalidArgument, "nothing");
    kind(&graph.add(&[0, 1]).unwrap_err(), ShapeMismatch, "4 and 6");
    kind(&graph.tie(1, 4).unwrap_err(), InvalidArgument, "unit = 4");
    kind(&graph.without(&values[1..], &[], &[]).unwrap_err(), ShapeMismatch, "values");
    kind(&graph.without(&values, &[14], &[]).unwrap_err(), InvalidArgument, "channel 14");
    kind(&graph.without(&values, &[], &[2]).unwrap_err(), InvalidArgument, "operator 2");
    kind(&graph.redundant_channels(&[1.0], 1).unwrap_err(), ShapeMismatch, "1 scores");
    kind(&graph.redundant_operators(&[f64::NAN, 0.0], 1).unwrap_err(), Numerical, "group 0");
}
