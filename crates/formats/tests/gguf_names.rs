//! Names of tensors in GGUF files and in folders.

use std::collections::BTreeSet;

use tensorpress_formats::gguf::model::{Arch, pairs};

/// What files of each architecture have in their blocks.
fn block(arch: &Arch) -> Vec<&'static str> {
    let usual = ["attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm"];
    let dense = ["ffn_gate", "ffn_up", "ffn_down"];
    let experts = ["ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"];
    match arch.kind {
        "mixtral" | "qwen3_moe" => [&usual[..], &experts].concat(),
        "phi3" => vec!["attn_norm", "attn_qkv", "attn_output", "ffn_norm", "ffn_up", "ffn_down"],
        "bert" => {
            let of_bert = ["attn_q", "attn_output_norm", "ffn_up", "ffn_down", "layer_output_norm"];
            of_bert.to_vec()
        }
        "gemma2" | "gemma3_text" => {
            [&usual[..], &dense, &["post_attention_norm", "post_ffw_norm"]].concat()
        }
        _ => [&usual[..], &dense].concat(),
    }
}

#[test]
fn names_go_there_and_back() {
    let mut checked = 0;
    for arch in Arch::all() {
        let block = block(arch).into_iter().map(|name| format!("blk.17.{name}.weight"));
        for name in block.chain(["token_embd.weight".to_owned()]) {
            let there = arch.to_folder(&name).unwrap_or_else(|| panic!("{}: {name}", arch.kind));
            let folder = there.name.replace("{}", "3");
            let (back, expert) = arch.to_file(&folder).unwrap_or_else(|| panic!("{folder}"));
            assert_eq!(back.name, name, "{folder}");
            assert_eq!(expert, there.experts.then_some(3), "{folder}");
            assert_eq!((back.paired, back.plus_one), (there.paired, there.plus_one), "{folder}");
            checked += 1;
        }
        assert!(arch.to_folder("blk.x.attn_q.weight").is_none());
        assert!(arch.to_file("model.layers.0.unknown.weight").is_none());
    }
    println!("checked: names {checked}");
    assert!(checked > 70);
}

/// As the converter reshapes: [heads, 2, dim / 2] becomes [heads, dim / 2, 2].
#[test]
fn rows_of_heads_in_pairs() {
    assert_eq!(pairs(8, 2), [0, 2, 1, 3, 4, 6, 5, 7]);
    let all = pairs(96, 3);
    assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), 96);
}
