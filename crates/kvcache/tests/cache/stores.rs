//! The stores that pack tokens in units or learn from the first ones, behind policies: laws of whole caches, and bad input.

use tensorpress_kvcache::KvRecipe;
use tensorpress_tensor::ErrorKind;

use crate::wire::{read, written};
use crate::{DIM, HEADS, KV_HEADS, feed, go_on_alike, held, one, total};

const OTHERS: [&str; 9] = [
    "hadamard_int(key_bits=8, value_bits=4)",
    "hadamard_int(sinks=0, centre=false, window=32)",
    "zipcache(bits=4, chunk=16)",
    "gear(bits=4, chunk=16, group=16)",
    "kvquant(bits=4, fit=32)",
    "pq_cache(sub=2, bits=4, fit=40)",
    "channel_shrink(keys=0.75, values=0.5, fit=32)",
    "channel_shrink(bits=4, fit=32, chunk=16)",
    "matryoshka_proj(keys=0.9, values=0.9, fit=32)",
];
const THEN: [&str; 4] = [
    "",
    " | h2o(keep=0.6, stride=8)",
    " | snapkv(tokens=80) | adakv",
    " | salient(tokens=64, window=32) | demote(bits=4)",
];

fn recipes() -> impl Iterator<Item = String> {
    OTHERS.into_iter().flat_map(|store| THEN.map(|then| format!("{store}{then}")))
}

#[test]
fn going_on_after_reading_forking_and_going_back() {
    for recipe in recipes() {
        let mut cache = one(&recipe);
        feed(&mut cache, 0..130);
        (130..134).for_each(|t| drop(feed(&mut cache, t..t + 1)));
        let (bytes, text) = written(&cache);
        let mut back = read(bytes, &text).expect(&recipe);
        assert_eq!((back.describe(), held(&back)), (cache.describe(), held(&cache)), "{recipe}");
        let mut fork = cache.fork();
        (200..220).for_each(|t| drop(feed(&mut fork, t..t + 1)));
        go_on_alike(&mut back, &mut cache, 134..150, &recipe);
        assert_eq!(written(&back), written(&cache), "{recipe}");
        let mut fresh = one(&recipe);
        cache.truncate(0).expect("back to nothing");
        assert_eq!(feed(&mut cache, 0..90), feed(&mut fresh, 0..90), "{recipe}");
        go_on_alike(&mut cache, &mut fresh, 90..100, &recipe);
    }
}

#[test]
fn budgets_hold() {
    for store in OTHERS {
        let mut cache = one(&format!("{store} | h2o(tokens=50, stride=8)"));
        for step in [0..130, 130..131, 131..132, 132..170, 170..171] {
            feed(&mut cache, step);
            assert!((38 * KV_HEADS..=50 * KV_HEADS).contains(&total(&cache)), "{store}");
        }
    }
}

#[test]
fn what_cannot_be_is_said() {
    for (line, parts) in [
        ("hadamard_int(key_bits=3)", ["key_bits = 3", "2, 4 and 8"]),
        ("hadamard_int(group=24)", ["group = 24", "multiples of 16"]),
        ("zipcache(bits=9)", ["bits = 9", "8"]),
        ("zipcache(value_norm=max)", ["value_norm = max", "sqrt_max"]),
        ("gear(group=48)", ["group = 48", "must divide chunk = 128"]),
        ("gear(rank=64)", ["rank = 64", "0 to 32"]),
        ("gear(sparsity=0.9)", ["sparsity = 0.9", "0.5"]),
        ("kvquant(sinks=300)", ["fit = 256", "300 first tokens"]),
        ("kvquant(levels=best)", ["levels = best", "fitted"]),
        ("pq_cache(sub=3)", ["sub = 3", "must divide head_dim = 32"]),
        ("pq_cache(fit=100)", ["fit = 100", "at least 256"]),
        ("channel_shrink(keys=0)", ["keys = 0", "above 0"]),
        ("channel_shrink(bits=9)", ["bits = 9", "16"]),
        ("matryoshka_proj(values=0)", ["values = 0", "above 0"]),
    ] {
        let made = line.parse::<KvRecipe>().and_then(|r| r.caches(1, HEADS, KV_HEADS, DIM));
        let error = made.expect_err(line);
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{line}: {error}");
        for part in parts {
            assert!(error.message().contains(part), "{line}: {error}");
        }
    }
}
