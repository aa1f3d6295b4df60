use ndarray::{Array2, Array3, s};
use tensorpress_kvcache::stream::{
    Bins, Chunk, Level, Table, Tables, decode_symbols, encode_symbols,
};
use tensorpress_tensor::{Checkpoint, ndarray};

use crate::{floats, ints, open};

fn cube(file: &Checkpoint, name: &str) -> Array3<f32> {
    let shape: [usize; 3] = file.shape(name).expect("a tensor").try_into().expect("three axes");
    Array3::from_shape_vec(shape, floats(file, name)).expect("as the shape says")
}

/// The released code: symbols, what they stand for, tables, and the bytes of every layer and channel.
#[test]
fn cachegen() {
    let Some(file) = open("cachegen") else { return };
    let lengths = ints(&file, "stream_lengths");
    let tables = ints(&file, "cdf_u16_as_i32");
    let streams = file.tensor("streams_concat").expect("streams");
    let (mut at, mut checked) = (0, 0);
    for (kind, name) in ["key", "value"].into_iter().enumerate() {
        let x = cube(&file, if kind == 0 { "in.k" } else { "in.v" });
        let held = cube(&file, &format!("dequant_{name}"));
        let symbols = file.tensor(&format!("sym_{name}")).expect("symbols");
        let bins = floats(&file, &format!("{name}_bins"));
        let (tokens, channels) = (x.dim().1, x.dim().2);
        // The largest were taken over more channels than the file has.
        let largest = floats(&file, &format!("max_{name}"));
        for layer in 0..x.dim().0 {
            let bins = Bins::new(bins[layer] as usize).expect("bins");
            let largest = &largest[layer * tokens..][..tokens];
            let mine = bins.quantise(x.slice(s![layer, .., ..]), largest);
            let theirs = &symbols.bytes()[layer * tokens * channels..][..tokens * channels];
            let theirs = Array2::from_shape_vec((tokens, channels), theirs.to_vec()).expect("all");
            assert_eq!(mine, theirs, "{name}, layer {layer}");
            let back = bins.dequantise(mine.view(), largest);
            assert_eq!(back, held.slice(s![layer, .., ..]), "{name}, layer {layer}");
            let measured = Tables::measure(mine.view(), bins).expect("tables");
            for channel in 0..channels {
                let row = (kind * x.dim().0 + layer) * channels + channel;
                let table = &measured.tables()[channel];
                let entries: Vec<usize> = table.entries().iter().map(|e| usize::from(*e)).collect();
                assert_eq!(entries, tables[row * 33..][..33], "{name} {layer}, {channel}");
                let symbols = mine.column(channel);
                let bytes = encode_symbols(symbols.iter().copied(), table);
                let theirs = &streams.bytes()[at..][..lengths[row]];
                assert_eq!(bytes, theirs, "{name}, layer {layer}, channel {channel}");
                assert_eq!(decode_symbols(theirs, tokens, table), symbols.to_vec());
                at += lengths[row];
                checked += 1;
            }
        }
    }
    assert_eq!(at, streams.bytes().len());
    println!(
        "cachegen: 1 file, 24 layers of symbols and values, {checked} tables and streams equal"
    );
}

/// What a chunk of all layers takes, as it is written here, and what an anchor for every ten tokens does to it.
#[test]
fn cachegen_bits() {
    let Some(file) = open("cachegen") else { return };
    let (k, v) = (cube(&file, "in.k"), cube(&file, "in.v"));
    let views = |x: &Array3<f32>| x.outer_iter().map(|x| x.to_owned()).collect::<Vec<_>>();
    let (k, v) = (views(&k), views(&v));
    let (k, v): (Vec<_>, Vec<_>) =
        (k.iter().map(|x| x.view()).collect(), v.iter().map(|x| x.view()).collect());
    let bins = |name: &str| floats(&file, name).iter().map(|b| *b as usize).collect::<Vec<_>>();
    let level = Level::new(&bins("key_bins"), &bins("value_bins")).expect("a level");
    let values = (2 * 6 * 256 * 32) as f64;
    let mut bits = Vec::new();
    for group in [0, 10] {
        let chunk = Chunk::quantise(&k, &v, &level.clone().with_group(group)).expect("a chunk");
        let profile = chunk.profile().expect("tables");
        for profile in [None, Some(&profile)] {
            let bytes = chunk.write(profile).expect("bytes");
            assert_eq!(Chunk::read(&bytes, profile).expect("reads"), chunk);
            bits.push(8.0 * bytes.len() as f64 / values);
        }
    }
    println!("cachegen: bits a value, own tables and a profile, alone and by anchors: {bits:.2?}");
    assert!(bits[1] < bits[0] && bits[3] < bits[2]);
}

#[test]
fn tables_hold_any_symbol() {
    for counts in [vec![0u64; 31], vec![0, 5, 0], vec![u64::from(u32::MAX); 255], vec![1]] {
        let table = Table::new(&counts).expect("a table");
        assert!(table.entries().is_sorted_by(|a, b| a < b), "{counts:?}");
        assert_eq!(table.entries()[0], 0);
        let all: Vec<u8> = (0..counts.len() as u8).chain((0..counts.len() as u8).rev()).collect();
        let bytes = encode_symbols(all.iter().copied(), &table);
        assert_eq!(decode_symbols(&bytes, all.len(), &table), all);
    }
    assert!(Table::new(&[0; 257]).is_err());
}
