//! Tokenizers of GGUF files and of Hugging Face folders: each made of the other gives the same tokens, and what
//! contradicts itself is refused by name.

mod hostile;
mod made;
mod names;
mod real;

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
