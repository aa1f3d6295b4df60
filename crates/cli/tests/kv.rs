//! `--kv`: keys and values held as a recipe says, in judging and in generating.

mod common;

use common::{assert_fails, json, run};
use tensorpress_tensor::testing::data;

fn eval(kv: Option<&str>) -> serde_json::Value {
    let mut args = vec!["eval", "demo", "--reference", "demo", "--max-segments", "6", "--json"];
    args.extend(kv.iter().flat_map(|kv| ["--kv", *kv]));
    json(&run(&args))
}

#[test]
fn caches_that_lose_nothing_change_nothing_and_others_little() {
    let plain = eval(None);
    assert!(plain.get("kv_bytes_per_token").is_none(), "{plain}");
    let number = |value: &serde_json::Value, key: &str| value[key].as_f64().expect("a number");
    let exact = eval(Some("f32"));
    assert!(number(&exact, "kld_mean").abs() < 1e-6, "{exact}");
    let half = eval(Some("f16"));
    let [all, of_half] = [&exact, &half].map(|value| number(value, "kv_bytes_per_token"));
    assert!((all / of_half - 2.0).abs() < 1e-9, "{all} and {of_half} bytes a token");
    let coarse = eval(Some("kivi(bits=2, group=16, residual=16)"));
    assert!(number(&coarse, "kld_mean") > number(&half, "kld_mean"), "{coarse}");
    assert!(number(&coarse, "kv_bytes_per_token") < of_half, "{coarse}");
    let few = eval(Some("f16 | h2o(keep=0.5, recent=8, stride=8)"));
    assert!(number(&few, "kv_bytes_per_token") < 0.75 * of_half, "{few}");
    assert_eq!(few["tokens"], plain["tokens"]);
    assert!(plain.get("kv_recall").is_none(), "{plain}");
    assert!((number(&exact, "kv_recall") - 1.0).abs() < 1e-3, "{exact}");
    assert!(number(&exact, "kv_recall_gain") > 0.1, "{exact}");
    assert!(number(&few, "kv_recall") < 0.8, "{few}");
    // The score's rotary embedding is the model's.
    let expected = eval(Some("f16 | expected_attention(keep=0.5, recent=8, stride=8)"));
    assert!(number(&expected, "kv_bytes_per_token") < 0.75 * of_half, "{expected}");
    assert!(number(&expected, "kld_mean") < 0.5, "{expected}");
}

#[test]
fn generation_reads_what_caches_hold() {
    let text = |kv: &[&str]| {
        let args = ["run", "demo", "--prompt", "Once upon a time", "--max-tokens", "24", "--json"];
        json(&run(&[&args[..], kv].concat()))["text"].as_str().expect("a text").to_owned()
    };
    let plain = text(&[]);
    assert_eq!(text(&["--kv", "f32"]), plain);
    assert!(!text(&["--kv", "kivi(bits=4) | streaming(tokens=40)"]).is_empty());
}

#[test]
fn models_without_keys_and_values_say_so() {
    for name in ["mamba", "mamba2"] {
        let Some(folder) = data::find(&format!("golden/models/{name}")) else { return };
        let ids = folder.join("expected.safetensors");
        let [folder, ids] = [&folder, &ids].map(|path| path.to_str().expect("UTF-8"));
        let plain = json(&run(&["eval", folder, "--text", ids, "--json"]));
        assert_eq!(plain["tokens"], 2 * 23);
        let refused = run(&["eval", folder, "--text", ids, "--kv", "f16"]);
        assert_fails(&refused, 2, &["--kv", name, "no keys and values", "state"]);
    }
}
