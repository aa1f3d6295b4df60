//! Pre-tokenisers by the names that `tokenizer.ggml.pre` has for them: the patterns by which a text is split before
//! merges are looked for. (Source: llama.cpp's list of names and patterns, and the `tokenizer.json` of the models that
//! gave the names.)

use serde_json::{Value, json};

use Step::{Bytes, Digit, Digits, Punctuation, Regex};

/// A way of splitting what the steps before it left whole.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Step {
    /// What a pattern matches stands alone.
    Regex(&'static str),
    /// GPT-2's pattern, by the pre-tokeniser of `tokenizer.json` that has it built in and goes over to bytes.
    Bytes,
    /// Every digit stands alone.
    Digit,
    /// Every run of digits stands alone.
    Digits,
    /// Every run of punctuation stands alone.
    Punctuation,
}

/// One way of splitting, and what comes with it.
#[derive(Debug)]
pub(super) struct Pre {
    /// Names that mean it, the one to be written first.
    names: &'static [&'static str],
    steps: &'static [Step],
    /// Whether words that are tokens are not merged anew.
    pub(super) ignore_merges: bool,
    /// Whether texts begin with BOS if nothing is said of it.
    pub(super) add_bos: bool,
    /// Whether texts are brought to Unicode's composed form before; GGUF files don't say so.
    pub(super) composed: bool,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// Words with one other character before them, up to three digits, punctuation with the line's end, blanks.
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// As Llama 3, with single digits.
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// As Qwen 2, with marks in words.
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// Words split where capitals begin anew, single digits.
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// As Tekken, with contractions and up to three digits.
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const JAIS2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}";
const BAILING: &str = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
const SEED_CODER: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+";
const EXAONE_MOE: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+";
const MINICPM5: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const BLOOM: &str = " ?[^(\\s|.,!?\u{2026}\u{3002}\u{ff0c}\u{3001}\u{964}\u{6d4}\u{60c})]+";
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
/// Han, Hangul and all between U+0800 and U+4E00.
const EASTERN: &str = "[\u{4e00}-\u{9fa5}\u{800}-\u{4e00}\u{ac00}-\u{d7ff}]+";
/// Han and kana.
const HAN_KANA: &str = "[\u{4e00}-\u{9fa5}\u{3040}-\u{309f}\u{30a0}-\u{30ff}]+";
/// Letters that have two cases, with a blank before them.
const CASED: &str = "\\s?[A-Za-z\u{b5}\u{c0}-\u{d6}\u{d8}-\u{f6}\u{f8}-\u{1ba}\u{1bc}-\u{1bf}\u{1c4}-\u{293}\
     \u{295}-\u{2af}\u{370}-\u{373}\u{376}\u{377}\u{37b}-\u{37d}\u{37f}\u{386}\u{388}-\u{38a}\
     \u{38c}\u{38e}-\u{3a1}\u{3a3}-\u{3f5}\u{3f7}-\u{481}\u{48a}-\u{52f}\u{531}-\u{556}\
     \u{10a0}-\u{10c5}\u{13a0}-\u{13f5}\u{13f8}-\u{13fd}\u{1c90}-\u{1cba}\u{1cbd}-\u{1cbf}\
     \u{1d00}-\u{1d2b}\u{1d6b}-\u{1d77}\u{1d79}-\u{1d9a}\u{1e00}-\u{1f15}\u{1f18}-\u{1f1d}\
     \u{1f20}-\u{1f45}\u{1f48}-\u{1f4d}\u{1f50}-\u{1f57}\u{1f59}\u{1f5b}\u{1f5d}\u{1f5f}-\
     \u{1f7d}\u{1f80}-\u{1fb4}\u{1fb6}-\u{1fbc}\u{1fbe}\u{1fc2}-\u{1fc4}\u{1fc6}-\u{1fcc}\
     \u{1fd0}-\u{1fd3}\u{1fd6}-\u{1fdb}\u{1fe0}-\u{1fec}\u{1ff2}-\u{1ff4}\u{1ff6}-\u{1ffc}\
     \u{2102}\u{2107}\u{210a}-\u{2113}\u{2115}\u{2119}-\u{211d}\u{2124}\u{2126}\u{2128}\
     \u{212a}-\u{212d}\u{212f}-\u{2134}\u{2139}\u{213c}-\u{213f}\u{2145}-\u{2149}\u{214e}\
     \u{2183}\u{2184}\u{2c00}-\u{2c7b}\u{2c7e}-\u{2ce4}\u{2ceb}-\u{2cee}\u{2cf2}\u{2cf3}\
     \u{a640}-\u{a66d}\u{a680}-\u{a69b}\u{a722}-\u{a76f}\u{a771}-\u{a787}\u{a78b}-\u{a78e}\
     \u{ab70}-\u{abbf}\u{fb00}-\u{fb06}\u{fb13}-\u{fb17}\u{ff21}-\u{ff3a}\u{ff41}-\u{ff5a}\
     \u{10400}-\u{1044f}\u{104b0}-\u{104d3}\u{104d8}-\u{104fb}\u{10c80}-\u{10cb2}\u{10cc0}-\
     \u{10cf2}\u{118a0}-\u{118df}\u{1e900}-\u{1e943}]+";
const MARKS: &str =
    "\\s?[!-/:-~\u{ff01}-\u{ff0f}\u{ff1a}-\u{ff5e}\u{2018}-\u{201f}\u{3000}-\u{3002}]+";
const LINE_ENDS: &str = r"[\r\n]";
const THREE: &str = "[0-9][0-9][0-9]";

/// One row; flags are those of the names alone.
const fn pre(names: &'static [&'static str], steps: &'static [Step]) -> Pre {
    Pre { names, steps, ignore_merges: false, add_bos: false, composed: false }
}

/// Where several mean the same, the first that fits is written.
#[rustfmt::skip]
static ALL: &[Pre] = &[
    Pre { ignore_merges: true, add_bos: true, ..pre(&["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2", "jina-v5-nano"], &[Regex(LLAMA3)]) },
    pre(&["dbrx", "smaug-bpe", "chatglm-bpe", "glm4"], &[Regex(LLAMA3)]),
    Pre { composed: true, ..pre(&["qwen2"], &[Regex(QWEN2)]) },
    pre(&["deepseek-r1-qwen", "megrez", "kormo", "f2llmv2", "stablelm2", "hunyuan", "solar-open", "grok-2"], &[Regex(QWEN2)]),
    Pre { composed: true, ..pre(&["qwen35"], &[Regex(QWEN35)]) },
    pre(&["gpt-2", "phi-2", "jina-es", "jina-de", "jina-v2-es", "jina-v2-de", "jina-v1-en", "jina-v2-code", "roberta-bpe", "gigachat", "a.x-4.0", "mellum", "jais", "trillion", "granite-docling", "exaone4"], &[Bytes]),
    Pre { composed: true, ..pre(&["olmo", "mpt", "modern-bert"], &[Bytes]) },
    pre(&["smollm", "starcoder", "refact", "codeshell", "exaone", "minerva-7b", "mellum2"], &[Digit, Bytes]),
    Pre { composed: true, ..pre(&["command-r"], &[Digit, Bytes]) },
    pre(&["default"], &[Regex(r"[\p{P}\$\+<=>\^~\|]+"), Regex(GPT2), Regex(r"\p{N}+"), Regex(THREE)]),
    pre(&["falcon"], &[Punctuation, Bytes, Digits, Regex(THREE)]),
    pre(&["deepseek-llm"], &[Regex(LINE_ENDS), Regex(CASED), Regex(MARKS), Regex(r"\s+$"), Regex(EASTERN), Digits]),
    pre(&["deepseek-llm"], &[Regex(LINE_ENDS), Regex(CASED), Regex(MARKS), Regex(r"\s+$"), Regex(EASTERN), Digit]),
    pre(&["deepseek-coder"], &[Regex(LINE_ENDS), Regex(r"\s?\p{L}+"), Regex(r"\s?\p{P}+"), Regex(EASTERN), Digit]),
    pre(&["deepseek-v3", "hunyuan-dense", "joyai-llm"], &[Regex(r"\p{N}{1,3}"), Regex(HAN_KANA), Regex(DEEPSEEK3)]),
    Pre { ignore_merges: true, add_bos: true, ..pre(&["tekken"], &[Regex(TEKKEN)]) },
    pre(&["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], &[Regex(GPT4O)]),
    pre(&["tiny_aya", "cohere2moe"], &[Regex(r"\d{1,3}(?=(?:\d{3})*\b)"), Regex(GPT4O)]),
    pre(&["bloom", "poro-chat", "gpt3-finnish"], &[Regex(BLOOM)]),
    pre(&["viking"], &[Regex(BLOOM), Digit]),
    pre(&["bailingmoe", "bailingmoe2", "llada-moe"], &[Regex(BAILING)]),
    pre(&["seed-coder"], &[Regex(SEED_CODER)]),
    pre(&["jais-2"], &[Regex(JAIS2)]),
    Pre { ignore_merges: true, ..pre(&["minicpm5"], &[Regex(r"\p{N}{1,3}"), Regex(MINICPM5)]) },
    pre(&["exaone-moe"], &[Regex(EXAONE_MOE)]),
];

impl Step {
    /// The pattern that it splits by, which is what two of them are compared by.
    fn pattern(self) -> &'static str {
        match self {
            Regex(pattern) => pattern,
            Bytes => GPT2,
            Digit => r"\p{N}",
            Digits => r"\p{N}+",
            Punctuation => PUNCTUATION,
        }
    }

    fn to_json(self) -> Value {
        match self {
            Regex(pattern) => {
                json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
            }
            Bytes => bytes(true),
            Digit => json!({"type": "Digits", "individual_digits": true}),
            Digits => json!({"type": "Digits", "individual_digits": false}),
            Punctuation => json!({"type": "Punctuation", "behavior": "Contiguous"}),
        }
    }
}

/// Of the pre-tokeniser that has it built in.
const PUNCTUATION: &str = r"[\p{P}\$\+<=>\^~\|`]+";

/// Going over to bytes, after splitting by GPT-2's pattern or not.
pub(super) fn bytes(splits: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": splits})
}

/// What a name means.
pub(super) fn by_name(name: &str) -> Option<&'static Pre> {
    ALL.iter().find(|pre| pre.names.contains(&name))
}

impl Pre {
    /// As `tokenizer.json` has it.
    pub(super) fn to_json(&self) -> Value {
        let mut steps: Vec<Value> = self.steps.iter().map(|step| step.to_json()).collect();
        if !self.steps.contains(&Bytes) {
            steps.push(bytes(false));
        }
        match steps.len() {
            1 => steps.remove(0),
            _ => json!({"type": "Sequence", "pretokenizers": steps}),
        }
    }
}

/// The name of what a `tokenizer.json` does before merging, which splits by the same patterns in the same order. Of
/// several, one that comes with the same flags is taken, those of merging first.
pub(super) fn recognise(
    pre_tokenizer: &Value,
    ignore_merges: bool,
    composed: bool,
) -> Option<&'static str> {
    let mut patterns = Vec::new();
    collect(pre_tokenizer, &mut patterns)?;
    let same = |pre: &&Pre| pre.steps.iter().map(|step| step.pattern()).eq(patterns.iter());
    let fits = |pre: &Pre| (pre.ignore_merges == ignore_merges, pre.composed == composed);
    // The last of equals, and so from the back.
    ALL.iter().rev().filter(same).max_by_key(|pre| fits(pre)).map(|pre| pre.names[0])
}

/// Appends the patterns that a pre-tokeniser splits by; none if it does what no name says.
fn collect(pre_tokenizer: &Value, patterns: &mut Vec<String>) -> Option<()> {
    let flag = |name: &str, default: bool| match pre_tokenizer.get(name) {
        None => Some(default),
        Some(value) => value.as_bool(),
    };
    match pre_tokenizer["type"].as_str()? {
        "Sequence" => {
            for part in pre_tokenizer["pretokenizers"].as_array()? {
                collect(part, patterns)?;
            }
        }
        "ByteLevel" if flag("add_prefix_space", true)? => return None,
        "ByteLevel" => {
            if flag("use_regex", true)? {
                patterns.push(GPT2.to_owned());
            }
        }
        "Digits" => {
            let step = if flag("individual_digits", false)? { Digit } else { Digits };
            patterns.push(step.pattern().to_owned());
        }
        "Punctuation" if pre_tokenizer["behavior"] == "Contiguous" => {
            patterns.push(PUNCTUATION.to_owned());
        }
        "Split" => {
            // Matches alone, or matches alone and nothing else, which is the same where patterns match everything.
            let kept = (pre_tokenizer["behavior"].as_str()?, flag("invert", false)?);
            if !matches!(kept, ("Isolated", _) | ("Removed", true)) {
                return None;
            }
            patterns.push(plain(pre_tokenizer["pattern"]["Regex"].as_str()?));
        }
        _ => return None,
    }
    Some(())
}

/// A pattern without differences of spelling.
fn plain(pattern: &str) -> String {
    let spelled = pattern.replace('\r', r"\r").replace('\n', r"\n");
    let spelled = spelled.replace(
        "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])",
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)",
    );
    match spelled.as_str() {
        r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+" => {
            GPT2.to_owned()
        }
        _ => spelled,
    }
}
