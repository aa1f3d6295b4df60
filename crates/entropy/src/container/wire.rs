//! Numbers and strings of the index.

use tensorpress_tensor::{Error, Result};

/// Appends to the index.
#[derive(Debug, Default)]
pub(super) struct Put {
    pub(super) bytes: Vec<u8>,
}

impl Put {
    pub(super) fn byte(&mut self, value: u8) {
        self.bytes.push(value);
    }

    /// Seven bits a byte, least significant first; the last byte has a clear top bit.
    pub(super) fn number(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }

    pub(super) fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.bytes.extend_from_slice(text.as_bytes());
    }

    pub(super) fn sum64(&mut self, sum: u64) {
        self.bytes.extend_from_slice(&sum.to_le_bytes());
    }

    pub(super) fn sum128(&mut self, sum: u128) {
        self.bytes.extend_from_slice(&sum.to_le_bytes());
    }
}

/// Reads the index; nothing is allocated that the bytes left do not back.
#[derive(Debug)]
pub(super) struct Take<'a> {
    left: &'a [u8],
}

impl<'a> Take<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { left: bytes }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.left.is_empty()
    }

    fn bytes(&mut self, count: usize) -> Result<&'a [u8]> {
        let (taken, left) = self
            .left
            .split_at_checked(count)
            .ok_or_else(|| Error::corruption("index: ends too early"))?;
        self.left = left;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        Ok(self.bytes(N)?.try_into().expect("N bytes"))
    }

    pub(super) fn byte(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    pub(super) fn number(&mut self) -> Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits || (byte == 0 && shift > 0) {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Error::corruption("index: a number is too long"))
    }

    /// A number of things that take at least `least` bytes each.
    pub(super) fn count(&mut self, least: usize) -> Result<usize> {
        let count = self.number()?;
        if count > (self.left.len() / least) as u64 {
            return Err(Error::corruption("index: says more than it holds"));
        }
        Ok(count as usize)
    }

    pub(super) fn text(&mut self) -> Result<String> {
        let length = self.count(1)?;
        let text = std::str::from_utf8(self.bytes(length)?);
        Ok(text.map_err(|_| Error::corruption("index: a name is no UTF-8"))?.to_owned())
    }

    pub(super) fn sum64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(super) fn sum128(&mut self) -> Result<u128> {
        Ok(u128::from_le_bytes(self.array()?))
    }

    /// How many things of at least `least` bytes could still come.
    pub(super) fn room(&self, least: usize) -> u64 {
        (self.left.len() / least) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for value in [0, 1, 127, 128, 300, 1 << 20, (1 << 35) - 1, 1 << 63, u64::MAX - 1, u64::MAX]
        {
            let mut put = Put::default();
            put.number(value);
            let mut take = Take::new(&put.bytes);
            assert_eq!(take.number().unwrap(), value);
            assert!(take.is_empty());
            let short = &put.bytes[..put.bytes.len() - 1];
            assert!(Take::new(short).number().is_err());
        }
        // Too many bits, and a number that has a shorter form.
        assert!(Take::new(&[0xff; 11]).number().is_err());
        assert!(
            Take::new(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2]).number().is_err()
        );
        assert!(Take::new(&[0x80, 0]).number().is_err());
        assert!(Take::new(&[0xff, 0xff, 0xff, 0xff, 0x0f]).count(1).is_err());
    }
}
