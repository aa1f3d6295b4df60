//! Tokenizers of GGUF files and of Hugging Face folders: each made of the other gives the same tokens, and what
//! contradicts itself is refused by name.

mod hostile;
mod made;
mod names;
mod real;

use std::collections::HashMap;

use tensorpress_formats::gguf::{Header, Value};
use tokenizers::Tokenizer;

type Keys = Vec<(String, Value)>;

const HARD: &[&str] = &[
    "",
    " ",
    "  ",
    "\n",
    " \n\t \r\n\n  x",
    "Hello, world!",
    "  two before, two after  ",
    "I've been 'told he's there, 'RE you sure? WE'LL see.",
    "1 12 123 1234 3.14159 0x1F 100,000 \u{bd} \u{664}",
    "caf\u{e9} na\u{ef}ve cafe\u{301} \u{1e9b}\u{323}",
    "\u{6211}\u{60f3}\u{5728}apple\u{5de5}\u{4f5c}1314151\u{5929}\u{ff5e} \u{3072}\u{3089} \u{d55c}\u{ae00}",
    "\u{1f680} (normal) \u{1f636}\u{200d}\u{1f32b}\u{fe0f} \u{2705} \u{1f999}\u{1f999}",
    "<s>one</s> <unk><s> two <0x41> <|endoftext|>x<|im_start|>",
    "[CLS] the [MASK] [SEP] ##ing [PAD300]",
    "\u{2581}the \u{2581}\u{2581} \u{0} \u{7f} \u{ad} \u{a0}.",
    "------======= ''''''```````\"\"\"\"......!!!!!!?????? $+<=>^~|",
    "fn main() {\n    println!(\"{}\", 1 << 4);\n}\n",
    "\u{43d}\u{435}\u{449}\u{43e} \u{43d}\u{430} \u{411}\u{44a}\u{43b}\u{433}\u{430}\u{440}\u{441}\u{43a}\u{438} \u{643}\u{62a}\u{627}\u{628}\u{60c} \u{915}\u{94d}\u{937}",
];

fn load(json: &[u8]) -> Tokenizer {
    Tokenizer::from_bytes(json).unwrap_or_else(|e| panic!("a tokenizer: {e}"))
}

fn ids(tokenizer: &Tokenizer, text: &str, around: bool) -> Vec<u32> {
    tokenizer.encode(text, around).expect("encodes").get_ids().to_vec()
}

fn header(keys: &[(String, Value)]) -> Header {
    Header::new(keys.to_vec(), []).expect("a header")
}

fn get<'a>(keys: &'a Keys, key: &str) -> &'a Value {
    let found = keys.iter().find(|(name, _)| name == key);
    &found.unwrap_or_else(|| panic!("no key {key}")).1
}

fn texts(keys: &Keys, key: &str) -> Vec<String> {
    get(keys, key).as_array().expect("an array").texts().map(str::to_owned).collect()
}

/// What llama.cpp makes of a text: pairs are merged that make the token of the highest score, the first of equals.
fn by_scores(tokens: &HashMap<String, (u32, f64)>, text: &str) -> Vec<u32> {
    let text = format!("\u{2581}{}", text.replace(' ', "\u{2581}"));
    let mut parts: Vec<String> = text.chars().map(String::from).collect();
    loop {
        let made = |pair: &[String]| tokens.get(&pair.concat()).map(|(_, score)| *score);
        let mut best: Option<(usize, f64)> = None;
        for (at, pair) in parts.windows(2).enumerate() {
            if let Some(score) = made(pair).filter(|score| best.is_none_or(|(_, b)| *score > b)) {
                best = Some((at, score));
            }
        }
        let Some((at, _)) = best else { break };
        let right = parts.remove(at + 1);
        parts[at] += &right;
    }
    let bytes = |part: &String| -> Vec<u32> {
        part.bytes().map(|byte| tokens[&format!("<0x{byte:02X}>")].0).collect()
    };
    let id = |part: &String| tokens.get(part).map(|(id, _)| vec![*id]);
    parts.iter().flat_map(|part| id(part).unwrap_or_else(|| bytes(part))).collect()
}

fn scored(keys: &Keys) -> HashMap<String, (u32, f64)> {
    let scores = get(keys, "tokenizer.ggml.scores").as_array().expect("an array").iter();
    let scores = scores.map(|score| score.as_f64().expect("a score"));
    let tokens = texts(keys, "tokenizer.ggml.tokens").into_iter().zip(scores).enumerate();
    tokens.map(|(id, (text, score))| (text, (id as u32, score))).collect()
}
