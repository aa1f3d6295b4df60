//! A chunk as bytes. Little-endian: a head with its checksum; then for each plane the largest magnitudes of its rows with
//! their checksum, and for each channel length and checksum of what follows, its table unless the profile has it, its
//! symbols coded.

use ndarray::{Array2, ArrayView1};
use tensorpress_tensor::{Error, Result, ndarray};
use xxhash_rust::xxh3::xxh3_64;

use super::chunk::{At, Chunk, Plane, Profile};
use super::coder::{decode_symbols, encode_symbols};
use super::level::Level;
use super::symbols::Bins;
use super::table::{Table, Tables};

const MAGIC: &[u8; 8] = b"TPKVS001";
/// The most tokens, channels and layers of a chunk that is read.
const MOST: u32 = 1 << 16;

fn checksum(bytes: &[u8]) -> u32 {
    xxh3_64(bytes) as u32
}

impl Profile {
    /// What tells profiles apart; never 0.
    fn fingerprint(&self) -> u64 {
        let mut bytes = Vec::new();
        for entry in self.0.iter().flat_map(Tables::tables).flat_map(Table::entries) {
            bytes.extend(entry.to_le_bytes());
        }
        xxh3_64(&bytes).max(1)
    }

    fn table(&self, plane: usize, at: At, channel: usize, bins: Bins) -> Result<&Table> {
        let table = self.0.get(plane).and_then(|tables| tables.tables().get(channel));
        table.filter(|table| table.symbols() >= bins.symbols()).ok_or_else(|| {
            let symbols = bins.symbols();
            Error::shape(format!(
                "profile: no table of {symbols} symbols for {}, channel {channel}",
                at.name()
            ))
        })
    }
}

/// Entries of a measured table that do not follow from the number of symbols.
fn table_bytes(table: &Table, bins: Bins) -> Vec<u8> {
    table.entries()[1..bins.symbols()].iter().flat_map(|e| e.to_le_bytes()).collect()
}

fn read_table(bytes: &[u8], bins: Bins) -> Option<Table> {
    // A table of nothing but the last symbol has the entries that follow.
    let mut counts = vec![0; bins.symbols()];
    *counts.last_mut()? = 1;
    let mut table = Table::new(&counts).ok()?;
    let read = bytes.as_chunks().0.iter().map(|b| u16::from_le_bytes(*b));
    table.0[1..bins.symbols()].iter_mut().zip(read).for_each(|(to, entry)| *to = entry);
    table.0.is_sorted_by(|a, b| a < b).then_some(table)
}

impl Chunk {
    /// The chunk as bytes; with the tables of a profile, or its own.
    ///
    /// # Errors
    /// `ShapeMismatch` for a profile of other layers, channels or levels.
    pub fn write(&self, profile: Option<&Profile>) -> Result<Vec<u8>> {
        let own = match profile {
            None => Some(self.profile()?),
            Some(_) => None,
        };
        let tables = profile.or(own.as_ref()).expect("one of both");
        let mut out = MAGIC.to_vec();
        let [keys, values] = self.channels;
        for n in [self.level.layers(), keys, values, self.tokens, self.level.group()] {
            let n = u32::try_from(n).ok().filter(|n| *n <= MOST).ok_or_else(|| {
                Error::invalid(format!("{n} layers, channels or tokens: at most {MOST}"))
            })?;
            out.extend(n.to_le_bytes());
        }
        out.extend(profile.map_or(0, Profile::fingerprint).to_le_bytes());
        for layer in 0..self.level.layers() {
            for values in [false, true] {
                let bins = self.level.bins(layer, values).symbols() as u16 + 1;
                out.extend(bins.to_le_bytes());
            }
        }
        out.extend(checksum(&out).to_le_bytes());
        for (index, plane) in self.planes.iter().enumerate() {
            let bins = plane.at.bins(&self.level);
            let largest: Vec<u8> = plane.largest.iter().flat_map(|l| l.to_le_bytes()).collect();
            out.extend(&largest);
            out.extend(checksum(&largest).to_le_bytes());
            for (channel, symbols) in plane.symbols.columns().into_iter().enumerate() {
                let table = tables.table(index, plane.at, channel, bins)?;
                let mut bytes = own.as_ref().map_or(Vec::new(), |_| table_bytes(table, bins));
                bytes.extend(coded(symbols, table));
                out.extend((bytes.len() as u32).to_le_bytes());
                out.extend(checksum(&bytes).to_le_bytes());
                out.extend(bytes);
            }
        }
        Ok(out)
    }

    /// Reads what [`Chunk::write`] wrote; `profile` is the one it was written with, where it was.
    ///
    /// # Errors
    /// `Corruption` and `InsufficientData` for damage, naming layer and channel; `MissingBase` where the profile is absent or
    /// another one; `Version` for bytes of another kind.
    pub fn read(bytes: &[u8], profile: Option<&Profile>) -> Result<Self> {
        let mut cursor = Cursor { bytes, at: 0 };
        if cursor.take(MAGIC.len(), "head")? != MAGIC {
            return Err(Error::new(
                tensorpress_tensor::ErrorKind::Version,
                "not a chunk of keys and values of this version",
            ));
        }
        let mut head = || cursor.u32("head").map(|n| n.min(MOST + 1) as usize);
        let [layers, keys, values, tokens, group] = [head()?, head()?, head()?, head()?, head()?];
        let fingerprint = u64::from_le_bytes(cursor.array("head")?);
        let mut bins = [Vec::new(), Vec::new()];
        for _ in 0..layers {
            for bins in &mut bins {
                bins.push(usize::from(u16::from_le_bytes(cursor.array("head")?)));
            }
        }
        let sum = checksum(&bytes[..cursor.at]);
        let most = [layers, keys, values, tokens, group].iter().all(|n| *n <= MOST as usize);
        if cursor.u32("head")? != sum || !most || tokens == 0 {
            return Err(Error::corruption("head of a chunk: checksum or sizes"));
        }
        let level = Level::new(&bins[0], &bins[1]).map_err(|e| Error::corruption(e.message()))?;
        let level = level.with_group(group);
        let profile = match (fingerprint, profile) {
            (0, _) => None,
            (print, Some(profile)) if profile.fingerprint() == print => Some(profile),
            _ => {
                return Err(Error::missing_base("the profile that the chunk was written with"));
            }
        };
        let mut planes = Vec::new();
        for (index, at) in At::all(&level).into_iter().enumerate() {
            let channels = if at.values { values } else { keys };
            planes.push(cursor.plane(index, at, channels, tokens, &level, profile)?);
        }
        if cursor.at != bytes.len() {
            let more = bytes.len() - cursor.at;
            return Err(Error::corruption(format!("{more} bytes behind a chunk")));
        }
        Ok(Self { level, tokens, channels: [keys, values], planes })
    }
}

fn coded(symbols: ArrayView1<'_, u8>, table: &Table) -> Vec<u8> {
    encode_symbols(symbols.iter().copied(), table)
}

/// What is left of the bytes.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize, what: &str) -> Result<&'a [u8]> {
        let end = self.at.saturating_add(count);
        let taken = self.bytes.get(self.at..end).ok_or_else(|| {
            Error::insufficient(format!("a chunk ends early, at byte {}: {what}", self.bytes.len()))
        })?;
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        Ok(self.take(N, what)?.try_into().expect("as many"))
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn plane(
        &mut self,
        index: usize,
        at: At,
        channels: usize,
        tokens: usize,
        level: &Level,
        profile: Option<&Profile>,
    ) -> Result<Plane> {
        let (name, bins) = (at.name(), at.bins(level));
        let rows = at.rows(level, tokens).len();
        let bytes = self.take(4 * rows, &name)?;
        let largest: Vec<f32> =
            bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        let sound = largest.iter().all(|l| l.is_finite() && *l >= 0.0);
        if self.u32(&name)? != checksum(bytes) || !sound {
            return Err(Error::corruption(format!("{name}: largest magnitudes")));
        }
        let mut symbols = Vec::new();
        for channel in 0..channels {
            let what = format!("{name}, channel {channel}");
            let (length, sum) = (self.u32(&what)? as usize, self.u32(&what)?);
            let mut bytes = self.take(length, &what)?;
            let damaged = || Error::corruption(format!("{what}: damaged"));
            if checksum(bytes) != sum {
                return Err(damaged());
            }
            let own;
            let table = if let Some(profile) = profile {
                profile.table(index, at, channel, bins)?
            } else {
                let table;
                (table, bytes) =
                    bytes.split_at_checked(2 * (bins.symbols() - 1)).ok_or_else(damaged)?;
                own = read_table(table, bins).ok_or_else(damaged)?;
                &own
            };
            let decoded = decode_symbols(bytes, rows, table);
            if decoded.iter().any(|s| usize::from(*s) >= bins.symbols()) {
                return Err(damaged());
            }
            symbols.extend(decoded);
        }
        let symbols = Array2::from_shape_vec((channels, rows), symbols).expect("rows a channel");
        let symbols = symbols.t().as_standard_layout().into_owned();
        Ok(Plane { at, symbols, largest })
    }
}
