//! The header of a page and its checksum; `docs/methods/page.md` is normative.

use tensorpress_tensor::{DType, Error, Result};
use xxhash_rust::xxh3::xxh3_64;

use super::config::PageConfig;

/// The first bytes of every page: not text.
const MAGIC: [u8; 4] = *b"\x89TPG";
/// The version of the layout that is written.
const VERSION: u8 = 1;

/// Magic, version, parameters, how many tokens are held.
pub(super) const HEAD: usize = 48;
/// The checksum behind everything else.
pub(super) const SUM: usize = 8;

const ASYMMETRIC: u8 = 1;
const ROTATED: u8 = 2;

/// Writes header and checksum around what lies between.
pub(super) fn seal(config: &PageConfig, held: usize, page: &mut [u8]) {
    let asymmetric = if config.symmetric { 0 } else { ASYMMETRIC };
    let rotated = if config.rotate { ROTATED } else { 0 };
    let mut head = [0; HEAD];
    head[..4].copy_from_slice(&MAGIC);
    head[4] = VERSION;
    head[5] = asymmetric | rotated;
    head[6] = config.key_bits as u8;
    head[7] = config.value_bits as u8;
    let counts = [config.tokens, held, config.kv_heads, config.head_dim, config.value_dim];
    for (at, count) in counts.into_iter().chain([config.group]).enumerate() {
        head[8 + 4 * at..][..4].copy_from_slice(&(count as u32).to_le_bytes());
    }
    head[32..40].copy_from_slice(&config.seed.to_le_bytes());
    head[40] = match config.scales {
        DType::F32 => 0,
        DType::F16 => 1,
        _ => 2,
    };
    page[..HEAD].copy_from_slice(&head);
    let (rest, sum) = page.split_at_mut(page.len() - SUM);
    sum.copy_from_slice(&xxh3_64(rest).to_le_bytes());
}

/// What a page says of itself: its parameters, not compared with its length yet, and how many tokens it holds.
pub(super) fn open(page: &[u8]) -> Result<(PageConfig, usize)> {
    let early = || Error::insufficient("the page ends early");
    let Some((head, _)) = page.split_first_chunk::<HEAD>() else { return Err(early()) };
    if head[..4] != MAGIC {
        return Err(Error::corruption("this is no page of keys and values"));
    }
    if head[4] != VERSION {
        let message = format!("a page of version {}; this build reads {VERSION}", head[4]);
        return Err(Error::version(message));
    }
    let (rest, sum) = page.split_last_chunk::<SUM>().ok_or_else(early)?;
    if rest.len() < HEAD {
        return Err(early());
    }
    let whole = xxh3_64(rest).to_le_bytes() == *sum;
    let count = |at: usize| {
        let bytes = head[8 + 4 * at..].first_chunk().expect("within the header");
        u32::from_le_bytes(*bytes) as usize
    };
    let config = PageConfig {
        tokens: count(0),
        kv_heads: count(2),
        head_dim: count(3),
        value_dim: count(4),
        group: count(5),
        key_bits: u32::from(head[6]),
        value_bits: u32::from(head[7]),
        symmetric: head[5] & ASYMMETRIC == 0,
        rotate: head[5] & ROTATED != 0,
        seed: u64::from_le_bytes(*head[32..].first_chunk().expect("within the header")),
        scales: match head[40] {
            0 => DType::F32,
            1 => DType::F16,
            _ => DType::BF16,
        },
    };
    if !whole {
        // What is cut has no checksum where one is looked for; say that it is cut, where its header does.
        return Err(match config.page_bytes() {
            Ok(expected) if expected > page.len() => early(),
            _ => Error::corruption("the checksum of the page does not match"),
        });
    }
    if head[5] & !(ASYMMETRIC | ROTATED) != 0 || head[40] > 2 || head[41..] != [0; HEAD - 41] {
        return Err(Error::version("a page with parameters that this build does not know"));
    }
    let held = count(1);
    if held > config.tokens {
        let tokens = config.tokens;
        return Err(Error::corruption(format!("{held} tokens in a page of {tokens}")));
    }
    Ok((config, held))
}
