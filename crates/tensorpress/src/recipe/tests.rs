use tensorpress_prune::{ChannelMetric, Flap};
use tensorpress_tensor::{ErrorKind, stage};

use super::*;

fn reread(recipe: &Recipe, text: &str) -> Recipe {
    match recipe.layers().is_empty() {
        true => Recipe::parse(text).expect("reads its own text"),
        false => Recipe::from_toml(text).expect("reads its own text"),
    }
}

#[test]
fn good_lines() {
    let table = [
        ("w8", "rtn(bits=8, group=128, symmetric=false, clip=minmax, scale=f16)"),
        (
            "w4",
            "gptq(bits=4, group=128, symmetric=false, clip=mse, scale=f16, act_order=false, \
             static_groups=false, damp=0.01, block=128)",
        ),
        ("rtn", "rtn(bits=4, group=128, symmetric=false, clip=minmax, scale=f16)"),
        ("rtn()", "rtn(bits=4, group=128, symmetric=false, clip=minmax, scale=f16)"),
        (
            "  rtn ( scale = \"bf16\" ,bits=2,symmetric=true )",
            "rtn(bits=2, group=128, symmetric=true, clip=minmax, scale=bf16)",
        ),
        (
            "gptq(damp=1, group=0, act_order=true)",
            "gptq(bits=4, group=0, symmetric=false, clip=minmax, scale=f16, act_order=true, \
             static_groups=false, damp=1.0, block=128)",
        ),
        (
            "gptq(group=32)",
            "gptq(bits=4, group=32, symmetric=false, clip=minmax, scale=f16, act_order=false, \
             static_groups=false, damp=0.01, block=32)",
        ),
        (
            "awq(bits=3, clip=output)",
            "awq(bits=3, group=128, symmetric=false, clip=output, scale=f16, ratios=20, samples=4096)",
        ),
        (
            "awq(clip=output)|rtn(bits=3)",
            "awq(clip=output, ratios=20, samples=4096) | rtn(bits=3, group=128, symmetric=false, \
             clip=minmax, scale=f16)",
        ),
        (
            "awq | rtn",
            "awq(ratios=20, samples=4096) | rtn(bits=4, group=128, symmetric=false, clip=minmax, \
             scale=f16)",
        ),
    ];
    for (text, canonical) in table {
        let recipe = Recipe::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(recipe.canonical(), canonical, "{text}");
        assert_eq!(reread(&recipe, &recipe.canonical()), recipe, "{text}");
        assert_eq!(reread(&recipe, &recipe.to_string()), recipe, "{text}");
        recipe.chain().expect("one chain").build().unwrap_or_else(|e| panic!("{text}: {e}"));
    }
    assert_eq!(Recipe::parse("w3").unwrap().to_string(), "gptq(bits=3, group=64, clip=mse)");
}

#[test]
fn bad_lines() {
    // What the message must name: the key, the value, and what is allowed.
    let table: &[(&str, &[&str])] = &[
        ("", &["expected the name of a stage", "column 1"]),
        ("w5", &["`w5`", "rtn, gptq, awq", "w8, w4, w3"]),
        ("rtm(bits=4)", &["unknown stage `rtm`", "rtn, gptq, awq"]),
        ("rtn(bits=1)", &["rtn: bits = 1", "from 2 to 8"]),
        ("rtn(bits=9)", &["rtn: bits = 9", "from 2 to 8"]),
        ("rtn(bits=4.5)", &["bits = 4.5", "integers"]),
        ("rtn(bits=four)", &["bits = four", "integers"]),
        ("rtn(bits=99999999999999999999)", &["bits = ", "from 2 to 8"]),
        ("rtn(group=-1)", &["group = -1", "from 0"]),
        ("rtn(bit=4)", &["unknown key `bit` (= 4)", "bits, group, symmetric, clip, scale"]),
        ("rtn(act_order=true)", &["unknown key `act_order`", "allowed are bits"]),
        ("rtn(symmetric=yes)", &["symmetric = yes", "true and false"]),
        ("rtn(symmetric=1)", &["symmetric = 1", "true and false"]),
        ("rtn(clip=output)", &["clip = output", "minmax, mse"]),
        ("rtn(scale=f8)", &["scale = f8", "f16, bf16, f32"]),
        ("gptq(damp=-0.1)", &["gptq: damp = -0.1", "numbers from 0"]),
        ("gptq(damp=nan)", &["damp = nan", "numbers"]),
        ("gptq(block=0)", &["block = 0", "from 1"]),
        ("rtn(bits=4, bits=4)", &["`bits` is given twice"]),
        ("rtn(bits)", &["`bits` has no value"]),
        ("rtn(bits=4", &["expected `,` or `)`", "the end"]),
        ("rtn(bits=)", &["expected a value", "`)`"]),
        ("rtn(scale=\"f16)", &["closing"]),
        ("rtn bits=4", &["expected `|` or the end", "column 5"]),
        ("rtn |", &["expected the name of a stage", "the end"]),
        ("rtn | gptq", &["`rtn` and `gptq`", "at most one quantiser or factoriser"]),
        (
            "rtn | awq",
            &["`rtn` (quantiser or factoriser) cannot come before `awq`", "the order is"],
        ),
        ("awq(bits=3) | gptq(bits=3)", &["awq: bits = 3", "`gptq`"]),
        ("awq(clip=mse) | gptq", &["awq: clip = mse", "`gptq`"]),
    ];
    for (text, parts) in table {
        let error = Recipe::parse(text).expect_err(text);
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{text}: {error}");
        for part in *parts {
            assert!(error.to_string().contains(part), "{text}: `{error}` lacks `{part}`");
        }
    }
}

#[test]
fn stages_of_later_versions_are_named_as_such() {
    for text in ["quip | gptq(bits=3)", "lqer(rank=8)"] {
        let error = Recipe::parse(text).expect_err(text);
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{text}");
        assert!(error.message().contains("planned"), "{text}: {error}");
        assert!(error.message().contains("rtn, gptq, awq"), "{text}: {error}");
    }
}

#[test]
fn selectors_stand_alone_or_before_a_quantiser() {
    for text in [
        "wanda(sparsity=0.3)",
        "magnitude(pattern=\"2:4\") | rtn",
        "wanda(pattern=16x1, sparsity=0.9)",
        "sparsegpt(pattern=4x4) | gptq",
        "awq | sparsegpt(pattern=4:8, damp=0.1) | gptq(bits=3) | coded(rans)",
    ] {
        let recipe = Recipe::parse(text).expect(text);
        assert_eq!(Recipe::parse(&recipe.canonical()).unwrap(), recipe, "{text}");
        recipe.chain().unwrap().build().expect(text);
    }
    for (text, part) in [
        ("wanda(sparsity=1.5)", "sparsity = 1.5"),
        ("wanda(pattern=5:4)", "pattern = 5:4"),
        ("wanda(pattern=half)", "n:m"),
        ("wanda(pattern=0x4)", "blocks like 16x1"),
        ("wanda(pattern=4x)", "blocks like 16x1"),
        ("wanda(pattern=2:4, sparsity=0.7)", "one of them"),
        ("gptq | wanda", "order"),
        ("wanda | magnitude | rtn", "at most one selector"),
    ] {
        let error = Recipe::parse(text).expect_err(text);
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{text}: {error}");
        assert!(error.to_string().contains(part), "{text}: `{error}` lacks `{part}`");
    }
}

#[test]
fn factorisers_and_residuals() {
    for (text, canonical) in [
        ("svd", "svd(ratio=0.2, rank=0, energy=0.0, factors=source, relative=false)"),
        ("lord(rank=8)", "lord(ratio=0.0, rank=8, energy=0.0, factors=source, relative=false)"),
        (
            "asvd(energy=0.9)",
            "asvd(ratio=0.0, rank=0, energy=0.9, factors=source, relative=false, alpha=0.5, activity=abs_mean)",
        ),
        (
            "svd_llm(rtn(bits=8), ratio=0.4)",
            "svd_llm(rtn(bits=8, group=128, symmetric=false, clip=minmax, scale=f16), ratio=0.4, rank=0, \
             energy=0.0, factors=source, relative=false)",
        ),
        (
            "rtn | residual(eora) | residual(svd(rank=2)) | coded(rans)",
            "rtn(bits=4, group=128, symmetric=false, clip=minmax, scale=f16) | residual(eora(rank=16, \
             factors=f32)) | residual(svd(ratio=0.0, rank=2, energy=0.0, factors=source, relative=false)) | coded(rans)",
        ),
    ] {
        let recipe = Recipe::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(recipe.canonical(), canonical, "{text}");
        assert_eq!(reread(&recipe, &recipe.canonical()), recipe, "{text}");
        assert_eq!(reread(&recipe, &recipe.to_string()), recipe, "{text}");
        recipe.chain().unwrap().build().unwrap_or_else(|e| panic!("{text}: {e}"));
    }
    for (text, part) in [
        ("svd(rank=3, ratio=0.2)", "one of them"),
        ("svd(rank=3, energy=0.2)", "one of them"),
        ("svd(ratio=1.0)", "ratio = 1.0"),
        ("svd(rtn, factors=f16)", "factors = f16"),
        ("svd(wanda)", "rtn, gptq"),
        ("svd(rtn, rtn)", "needs one stage inside"),
        ("wanda | svd", "not factors"),
        ("rtn | residual", "needs one stage inside"),
        ("rtn | residual(rank=4)", "unknown key `rank`"),
        ("rtn | residual(awq)", "rtn, gptq"),
        ("rtn | eora", "inside another stage"),
        ("rtn | residual(eora(rank=0))", "rank = 0"),
        ("residual(eora)", "no quantiser"),
        ("rtn | coded(rans) | residual(eora)", "order"),
        ("rtn | svd", "at most one"),
    ] {
        let error = Recipe::parse(text).expect_err(text);
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{text}: {error}");
        assert!(error.to_string().contains(part), "{text}: `{error}` lacks `{part}`");
    }
    let twice = Recipe::parse("feature_mimicking | residual(eora)").unwrap_err();
    assert_eq!(twice.kind(), ErrorKind::Unsupported, "{twice}");
}

#[test]
fn sparsegpt_with_bits_is_one_joint_stage() {
    let recipe = Recipe::parse("sparsegpt(pattern=2:4, bits=4, group=32)").unwrap();
    assert_eq!(
        recipe.canonical(),
        "sparsegpt(sparsity=0.5, pattern=2:4, bits=4, group=32, symmetric=false, clip=minmax, scale=f16, \
         damp=0.01, block=32)"
    );
    assert_eq!(Recipe::parse(&recipe.canonical()).unwrap(), recipe);
    for text in ["sparsegpt(bits=4)", "awq | sparsegpt(bits=4) | coded(rans)"] {
        Recipe::parse(text).unwrap().chain().unwrap().build().unwrap();
    }
    for (text, part) in [
        ("sparsegpt(bits=4) | rtn", "bits = 4: allowed only in `rtn`"),
        ("sparsegpt(bits=1)", "bits = 1"),
        ("sparsegpt(bits=9)", "bits = 9"),
    ] {
        let error = Recipe::parse(text).expect_err(text);
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{text}: {error}");
        assert!(error.to_string().contains(part), "{text}: `{error}` lacks `{part}`");
    }
}

#[test]
fn rewrites_come_first() {
    for (text, canonical) in [
        ("flap", "flap(sparsity=0.2, uniform=false, metric=wifv)"),
        ("drop_blocks(score=last)", "drop_blocks(count=1, score=last)"),
        ("drop_blocks(share=0.25, score=output)", "drop_blocks(count=1, score=output, share=0.25)"),
        ("refit_head", "refit_head(damp=0.01)"),
        (
            "flap(sparsity=0, uniform=true, metric=ifv)",
            "flap(sparsity=0.0, uniform=true, metric=ifv)",
        ),
        (
            "flap(metric=wifn) | wanda | rtn",
            "flap(sparsity=0.2, uniform=false, metric=wifn) | wanda(sparsity=0.5, pattern=any) | rtn(bits=4, \
             group=128, symmetric=false, clip=minmax, scale=f16)",
        ),
    ] {
        let recipe = Recipe::parse(text).expect(text);
        assert_eq!(recipe.canonical(), canonical, "{text}");
        assert_eq!(Recipe::parse(&recipe.canonical()).unwrap(), recipe, "{text}");
        assert_eq!(recipe.rewrites().len(), 1);
        let chain = recipe.chain().unwrap();
        assert_eq!(chain.compresses(), chain.build().is_ok(), "{text}");
        assert_eq!(chain.compresses(), recipe.chain_for("any").is_some(), "{text}");
    }
    let many =
        Recipe::parse("drop_blocks | flap(sparsity=0.1) | drop_blocks(count=2) | flap | rtn")
            .unwrap();
    let texts: Vec<String> = many.rewrites().into_iter().map(|(text, _)| text).collect();
    assert_eq!(texts, ["drop_blocks", "flap(sparsity=0.1)", "drop_blocks(count=2)", "flap"]);
    // What is built in Rust says of itself what the recipe says of it.
    let mut flap = Flap::new(0.3).with_uniform(true).with_metric(ChannelMetric::Ifv);
    let text = "flap(sparsity=0.3, uniform=true, metric=ifv)";
    assert_eq!(stage::canonical("flap", &mut flap).unwrap(), text);
    assert_eq!(Recipe::parse(text).unwrap().canonical(), text);
    let refused = stage::canonical("flap", &mut Flap::new(1.0)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
    let alone = Recipe::parse("flap").unwrap().chain().unwrap().build().unwrap_err();
    assert_eq!(alone.kind(), ErrorKind::Unsupported, "{alone}");
    for (text, part) in [
        ("flap(sparsity=1)", "flap: sparsity = 1: allowed are 0 to below 1"),
        ("flap(sparsity=1.5)", "sparsity = 1.5"),
        ("flap(sparsity=-0.1)", "sparsity = -0.1"),
        ("flap(sparsity=nan)", "sparsity = nan"),
        ("flap(uniform=0.5)", "uniform = 0.5"),
        ("flap(metric=norm)", "wifv, ifv, wifn"),
        ("flap(bits=4)", "unknown key `bits`"),
        ("drop_blocks(count=0)", "count = 0"),
        ("drop_blocks(count=1.5)", "count = 1.5"),
        ("drop_blocks(share=1)", "share = 1: allowed are above 0 and below 1"),
        ("drop_blocks(score=best)", "influence, last, output, magnitude, taylor"),
        ("refit_head(damp=-1)", "damp = -1"),
        ("gptq | drop_blocks", "cannot come before `drop_blocks`"),
        ("rtn | flap", "the order is any number of rewrites"),
        ("awq | flap", "cannot come before `flap`"),
        ("flap | coded(rans)", "no quantiser, factoriser or selector"),
    ] {
        let error = Recipe::parse(text).expect_err(text);
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{text}: {error}");
        assert!(error.to_string().contains(part), "{text}: `{error}` lacks `{part}`");
    }
    let rule = "stage = ['flap']\n[[layer]]\nmatch = '*q_proj*'\nstage = ['rtn']";
    let recipe = Recipe::from_toml(rule).unwrap();
    assert_eq!(reread(&recipe, &recipe.canonical()), recipe);
    assert!(
        recipe.chain_for("x.q_proj.weight").is_some()
            && recipe.chain_for("x.v_proj.weight").is_none()
    );
    let error = Recipe::from_toml("[[layer]]\nmatch = '*q*'\nstage = ['flap | rtn']").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    assert!(
        error.message().contains("layer `*q*`") && error.message().contains("whole models"),
        "{error}"
    );
}

#[test]
fn coders_stand_inside_coded() {
    for (text, canonical_end) in
        [("gptq | coded(rans)", "coded(rans)"), ("rtn|coded( huffman )", "coded(huffman)")]
    {
        let recipe = Recipe::parse(text).unwrap();
        assert!(recipe.canonical().ends_with(canonical_end), "{}", recipe.canonical());
        assert_eq!(Recipe::parse(&recipe.canonical()).unwrap(), recipe);
        recipe.chain().unwrap().build().unwrap();
    }
    for text in [
        "coded(rans)",
        "rtn | rans",
        "rtn | coded",
        "rtn | coded(gptq)",
        "coded(rans) | rtn",
        "rtn | coded(rans) | coded(range)",
    ] {
        let error = Recipe::parse(text).expect_err(text);
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{text}: {error}");
    }
}

#[test]
fn toml_first_match_wins() {
    let recipe = Recipe::from_toml(
        r#"
        [[stage]]
        method = "awq"
        [[stage]]
        method = "gptq"
        bits = 3
        damp = 1
        [[layer]]
        match = "model.layers.0.*"
        skip = true
        [[layer]]
        match = "*.down_proj.weight"
        stage = [{ method = "rtn", bits = 8 }]
        [[layer]]
        match = "*.down_proj.*"
        stage = ["awq | rtn(bits=2)"]
        "#,
    )
    .expect("a recipe");
    let chain = |name: &str| recipe.chain_for(name).map(ToString::to_string);
    assert_eq!(chain("model.layers.0.mlp.down_proj.weight"), None);
    assert_eq!(chain("model.layers.1.mlp.down_proj.weight").unwrap(), "rtn(bits=8)");
    assert_eq!(chain("model.layers.1.mlp.down_proj.other").unwrap(), "awq | rtn(bits=2)");
    assert_eq!(chain("model.layers.1.mlp.up_proj.weight").unwrap(), "awq | gptq(bits=3, damp=1.0)");
    assert_eq!(reread(&recipe, &recipe.canonical()), recipe);
    assert_eq!(reread(&recipe, &recipe.to_string()), recipe);
    assert_eq!(reread(&recipe, &recipe.to_string()).canonical(), recipe.canonical());
    let layered = Recipe::from_toml("stage = ['rtn']\n[[layer.stage]]\n").expect_err("not a list");
    assert!(layered.message().contains("[[layer]]"), "{layered}");
}

#[test]
fn bad_toml() {
    let table: &[(&str, &[&str])] = &[
        ("", &["no [[stage]]"]),
        ("[[stage]]\nmethod = ", &["no valid TOML", "line 2"]),
        ("[[stage]]\nbits = 4", &["without `method`"]),
        ("[[stage]]\nmethod = 4", &["method = 4"]),
        ("[[stage]]\nmethod = 'rtn'\nbits = 1", &["stage: rtn: bits = 1", "from 2 to 8"]),
        ("[[stage]]\nmethod = 'rtn'\nbits = [4]", &["rtn: bits = [4]"]),
        ("[[stages]]\nmethod = 'rtn'", &["unknown key `stages`", "stage, layer"]),
        ("stage = 'rtn'", &["stage = \"rtn\"", "a list of stages"]),
        ("stage = ['rtn']\nlayer = 3", &["layer = 3"]),
        ("stage = ['rtn']\n[[layer]]\nskip = true", &["without `match`"]),
        ("stage = ['rtn']\n[[layer]]\nmatch = '*'", &["layer `*`", "`skip = true`"]),
        ("stage = ['rtn']\n[[layer]]\nmatch = '*'\nskip = false", &["layer `*`", "`stage`"]),
        ("stage = ['rtn']\n[[layer]]\nmatch = '*'\nskip = 1", &["skip = 1", "true and false"]),
        ("stage = ['rtn']\n[[layer]]\nmatch = '[a'\nskip = true", &["match = `[a`"]),
        ("stage = ['rtn']\n[[layer]]\nmatch = 'x'\nskip = true\nbits = 4", &["unknown key `bits`"]),
        (
            "stage = ['rtn']\n[[layer]]\nmatch = '*q*'\nstage = ['rtn(bits=0)']",
            &["layer `*q*`", "bits = 0"],
        ),
        ("[[layer]]\nmatch = '*'\nskip = true", &["nothing would be compressed"]),
    ];
    for (text, parts) in table {
        let error = Recipe::from_toml(text).expect_err(text);
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{text}: {error}");
        for part in *parts {
            assert!(error.to_string().contains(part), "{text}: `{error}` lacks `{part}`");
        }
    }
}

#[test]
fn files_end_in_toml() {
    let missing = Recipe::read("nowhere/recipe.toml").expect_err("no such file");
    assert_eq!(missing.kind(), ErrorKind::Io);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("recipe.toml");
    std::fs::write(&file, "[[stage]]\nmethod = 'rtn'\nbits = 12").expect("written");
    let error = Recipe::read(file.to_str().expect("utf-8")).expect_err("12 bits");
    assert_eq!(error.file(), Some(file.as_path()));
    std::fs::write(&file, "[[stage]]\nmethod = 'rtn'\nbits = 5").expect("written");
    assert_eq!(Recipe::read(file.to_str().expect("utf-8")).unwrap().to_string(), "rtn(bits=5)");
}

#[test]
fn hostile_lines_end() {
    let deep = "rtn(".repeat(10_000);
    assert!(Recipe::parse(&deep).is_err());
    for text in ["rtn(é=4)", "|", "((((", "rtn(bits=\"", "rtn(\u{0}=1)", "rtn(bits=1e999)"] {
        assert!(Recipe::parse(text).is_err(), "{text}");
    }
}
