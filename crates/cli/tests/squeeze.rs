//! Prompts from the command line.

mod common;

use std::fs;
use std::io::Write;
use std::process::{Output, Stdio};

use common::{arg, assert_fails, json, model_folder, run, tensorpress};
use tensorpress_tensor::testing::data;

const TEXT: &str = "Lily went to the park with her mom. She saw a big red ball. The ball was stuck in a tall tree. Tom came \
                    to help her. He was very kind. They played all day. Then they ate cake and went home. Mom gave them milk.";

fn piped(args: &[&str], input: &[u8]) -> Output {
    let mut child = tensorpress()
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    child.stdin.take().expect("a pipe").write_all(input).expect("written");
    child.wait_with_output().expect("ended")
}

#[test]
fn standard_output_is_the_compressed_text() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("prompt.txt");
    fs::write(&file, TEXT).expect("written");
    for budget in ["1", "7", "20", "45", "1000"] {
        let output = run(&["squeeze", arg(&file), "--budget", budget]);
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        let told = json(&run(&["squeeze", arg(&file), "--budget", budget, "--json"]));
        assert_eq!(told["text"], text);
        let budget: u64 = budget.parse().expect("a number");
        assert!(told["tokens"].as_u64().expect("a number") <= budget);
        assert_eq!(told["budget"], budget);
        let mut words = TEXT.split_whitespace();
        assert!(text.split_whitespace().all(|word| words.any(|w| w == word)), "{text}");
        // Counted again, by a text that is returned as it is.
        let again = json(&piped(&["squeeze", "-", "--budget", "1000", "--json"], text.as_bytes()));
        assert_eq!(again["tokens_before"], told["tokens"]);
    }
    assert_eq!(run(&["squeeze", arg(&file), "--budget", "1000"]).stdout, TEXT.as_bytes());
}

#[test]
fn questions_forced_words_and_other_tokenizers() {
    let question = ["--question", "Where was the ball?"];
    let args =
        [&["squeeze", "-", "--budget", "20", "--json", "--keep", "cake"], &question[..]].concat();
    let told = json(&piped(&args, TEXT.as_bytes()));
    let text = told["text"].as_str().expect("a text");
    assert!(text.contains("ball") && text.contains("cake"), "{text}");
    let folder = tempfile::tempdir().expect("a folder");
    let model = model_folder(folder.path());
    let same = [&args[..], &["--tokenizer", arg(&model)]].concat();
    assert_eq!(json(&piped(&same, TEXT.as_bytes())), told);

    let Some(minilm) = data::minilm() else { return };
    let args =
        ["squeeze", "-", "--budget", "12", "--model", arg(&minilm), question[0], question[1]];
    let output = piped(&args, TEXT.as_bytes());
    assert_eq!(String::from_utf8_lossy(&output.stdout), "The ball was stuck in a tall tree.");
    let args = ["squeeze", "-", "--budget", "12", "--tokenizer", arg(&minilm), "--json"];
    assert!(json(&piped(&args, TEXT.as_bytes()))["tokens"].as_u64().expect("a number") <= 12);
    println!("checked: squeeze with MiniLM");
}

#[test]
fn wrong_input_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("prompt.txt");
    fs::write(&file, b"fine so far \xff").expect("written");
    let file = arg(&file);
    assert_fails(
        &run(&["squeeze", file, "--budget", "5"]),
        1,
        &["prompt.txt", "not UTF-8 after byte 12"],
    );
    assert_fails(
        &piped(&["squeeze", "-", "--budget", "5"], b"\xc3"),
        1,
        &["standard input", "not UTF-8"],
    );
    assert_fails(&run(&["squeeze", file, "--budget", "0"]), 2, &["--budget", "from 1"]);
    assert_fails(&run(&["squeeze", file, "--budget", "-3"]), 2, &["-3"]);
    assert_fails(&run(&["squeeze", file]), 2, &["--budget"]);
    assert_fails(&run(&["squeeze", "nothing.txt", "--budget", "5"]), 1, &["nothing.txt"]);
    let forced = ["squeeze", "-", "--budget", "5", "--keep", "two words"];
    assert_fails(&piped(&forced, b"x"), 2, &["--keep", "two words"]);
    let fence = b"before\n```\nlet a_very_long_name = another_long_name;\n```\nafter";
    assert_fails(
        &piped(&["squeeze", "-", "--budget", "5"], fence),
        1,
        &["budget = 5", "code fences"],
    );
    let nowhere = arg(folder.path());
    assert_fails(
        &piped(&["squeeze", "-", "--budget", "5", "--tokenizer", nowhere], b"x"),
        1,
        &["tokenizer.json"],
    );
    let empty = piped(&["squeeze", "-", "--budget", "5"], b"");
    assert!(empty.status.success() && empty.stdout.is_empty());
}
