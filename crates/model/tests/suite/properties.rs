//! Properties of models of any shape.

use proptest::prelude::*;
use serde_json::json;
use tensorpress_tensor::Scratch;
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::{Array2, s};

use crate::common::{Tiny, logits, logits_in_pieces, max_difference};

fn models() -> impl Strategy<Value = Tiny> {
    let heads = prop_oneof![Just((1, 1)), Just((4, 4)), Just((4, 2)), Just((6, 2)), Just((5, 1))];
    let window = proptest::option::of(1usize..40);
    (heads, 1usize..7, window).prop_map(|((heads, kv_heads), half, window)| {
        let mut tiny = Tiny::new(heads, kv_heads, 2 * half);
        if let Some(window) = window {
            tiny.config["model_type"] = json!("mistral");
            tiny.config["sliding_window"] = json!(window);
        }
        tiny
    })
}

fn tokens() -> impl Strategy<Value = Vec<u32>> {
    proptest::collection::vec(0u32..61, 1..90)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_cut_through_the_cache_gives_the_prefill(
        tiny in models(),
        ids in tokens(),
        pieces in proptest::collection::vec(1usize..20, 90),
    ) {
        let model = tiny.decoder();
        let whole = logits(&model, &ids).unwrap();
        let cut = logits_in_pieces(&model, &ids, &pieces).unwrap();
        prop_assert!(max_difference(&whole, &cut) < 1e-4);
    }

    #[test]
    fn later_tokens_change_nothing_before_them(tiny in models(), ids in tokens(), at in 0usize..90) {
        let model = tiny.decoder();
        let at = at % ids.len();
        let mut changed = ids.clone();
        changed[at] = (changed[at] + 1) % 61;
        let (a, b) = (logits(&model, &ids).unwrap(), logits(&model, &changed).unwrap());
        let before = |x: &Array2<f32>| x.slice(s![..at, ..]).to_owned();
        prop_assert!(max_difference(&before(&a), &before(&b)) < 1e-4);
        prop_assert!(a.row(at) != b.row(at));
    }

    #[test]
    fn sequences_do_not_see_each_other_and_threads_change_nothing(
        tiny in models(),
        sequences in proptest::collection::vec(tokens(), 1..6),
    ) {
        let model = tiny.decoder();
        let lengths: Vec<usize> = sequences.iter().map(Vec::len).collect();
        let run = |par| {
            let mut scratch = Scratch::new(par);
            let mut hidden = model.embedding().embed(&sequences.concat(), &mut scratch).unwrap();
            for block in model.blocks() {
                block.forward_sequences(hidden.view_mut(), &lengths, None, &mut scratch).unwrap();
            }
            hidden
        };
        let together = run(Par::Seq);
        prop_assert_eq!(&together, &run(Par::Threads(3)));
        let mut row = 0;
        for ids in &sequences {
            let alone = model.hidden(ids, &mut Scratch::default()).unwrap();
            let mine = together.slice(s![row..row + ids.len(), ..]).to_owned();
            prop_assert!(max_difference(&alone, &mine) < 1e-4);
            row += ids.len();
        }
    }
}
