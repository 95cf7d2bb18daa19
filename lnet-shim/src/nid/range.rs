//! Lists of NIDs: `10.0.[0-3].*@tcp  [1-9/2]@kfi  fd00::/64@tcp  *@o2ib1`.
//!
//! Used by fault rules and commands. Items are separated by white space or, outside brackets, by commas. A large NID with
//! an unknown network type cannot be listed.

use std::fmt;
use std::str::FromStr;

use super::text::{self, Form, MAX_TEXT, Stop};
use super::{Net, Nid, ParseError};

/// The most items and alternatives a list may hold.
const MAX_ITEMS: usize = 1024;

/// A set of NIDs given by patterns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NidList {
    items: Vec<Item>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Item {
    net: Net,
    address: Address,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Address {
    All,
    Quad([Choice; 4]),
    Number(Choice),
    Mask { nid: Nid, bits: u32 },
}

/// Alternatives for one number.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Choice(Vec<Span>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    low: u32,
    high: u32,
    step: u32,
}

impl NidList {
    /// The list that holds every NID of `net`.
    pub fn all_of(net: Net) -> Self {
        Self { items: vec![Item { net, address: Address::All }] }
    }

    /// The list that holds one NID.
    pub fn one(nid: Nid) -> Self {
        let bits = if nid.is_large() { 128 } else { 32 };
        Self { items: vec![Item { net: nid.net(), address: Address::Mask { nid, bits } }] }
    }

    /// Whether `nid` is in the list.
    pub fn contains(&self, nid: Nid) -> bool {
        !nid.is_any() && self.items.iter().any(|i| i.contains(nid))
    }
}

impl Item {
    fn contains(&self, nid: Nid) -> bool {
        if nid.net() != self.net {
            return false;
        }
        match &self.address {
            Address::All => true,
            Address::Number(choice) => nid.small_address().is_some_and(|a| choice.contains(a)),
            Address::Quad(quad) => nid.small_address().is_some_and(|a| {
                quad.iter().zip(a.to_be_bytes()).all(|(choice, octet)| choice.contains(octet.into()))
            }),
            Address::Mask { nid: base, bits } => {
                base.is_large() == nid.is_large() && same_prefix(base.to_bytes(), nid.to_bytes(), *bits)
            }
        }
    }
}

fn same_prefix(a: [u8; 20], b: [u8; 20], bits: u32) -> bool {
    let mut left = bits;
    for (x, y) in a[4..].iter().zip(&b[4..]) {
        let take = left.min(8);
        let mask = if take == 0 { 0 } else { 0xffu8 << (8 - take) };
        if (x ^ y) & mask != 0 {
            return false;
        }
        left -= take;
    }
    true
}

impl Choice {
    fn contains(&self, value: u32) -> bool {
        self.0.iter().any(|s| (s.low..=s.high).contains(&value) && (value - s.low).is_multiple_of(s.step))
    }

    /// Parses `7`, `*`, or `[1-5/2,9]`, each number at most `max`.
    fn parse(text: &str, base: usize, max: u32) -> Result<Self, Stop> {
        if text == "*" {
            return Ok(Self(vec![Span { low: 0, high: max, step: 1 }]));
        }
        let Some(inner) = text.strip_prefix('[') else {
            let v = bounded(text, base, max)?;
            return Ok(Self(vec![Span::of(v)]));
        };
        let inner = inner.strip_suffix(']').ok_or((base + text.len(), "expected ']'"))?;
        let mut spans = Vec::new();
        let mut at = base + 1;
        for part in inner.split(',') {
            spans.push(Span::parse(part, at, max)?);
            at += part.len() + 1;
        }
        Ok(Self(spans))
    }
}

impl Span {
    /// One number: whatever the step was.
    fn of(value: u32) -> Self {
        Self { low: value, high: value, step: 1 }
    }

    fn parse(text: &str, base: usize, max: u32) -> Result<Self, Stop> {
        let (range, step) = match text.find('/') {
            Some(i) => (&text[..i], text::number(&text[i + 1..], base + i + 1, 10, "expected a step")?),
            None => (text, 1),
        };
        if step == 0 {
            return Err((base + range.len() + 1, "a step of 0"));
        }
        match range.find('-') {
            None => bounded(range, base, max).map(Self::of),
            Some(i) => {
                let low = bounded(&range[..i], base, max)?;
                let high = bounded(&range[i + 1..], base + i + 1, max)?;
                if high < low {
                    return Err((base + i + 1, "range ends before it starts"));
                }
                Ok(if low == high { Self::of(low) } else { Self { low, high, step } })
            }
        }
    }
}

fn bounded(text: &str, base: usize, max: u32) -> Result<u32, Stop> {
    let value = text::number(text, base, 10, "expected a number, '*' or '['")?;
    if value > max { Err((base, "number too big here")) } else { Ok(value) }
}

fn parse_item(item: &str, base: usize) -> Result<Item, Stop> {
    if item.chars().count() > MAX_TEXT * 4 {
        return Err((base, "item too long"));
    }
    let (address, net, form) = text::split_net(item, base)?;
    if address.is_empty() {
        return Err((base, "expected an address"));
    }
    if address == "*" {
        return Ok(Item { net, address: Address::All });
    }
    let address = match form {
        Some(Form::Number) => Address::Number(Choice::parse(address, base, u32::MAX)?),
        Some(Form::Ip { v6 }) if address.contains(':') || is_mask(address) => {
            parse_mask(address, net, v6, base)?
        }
        Some(Form::Ip { .. }) => Address::Quad(parse_quad(address, base)?),
        None => {
            let nid = text::parse_nid(item, base)?;
            if text::form_of(net).is_some() && !nid.is_large() {
                // Named by number all the same: as if it had been written the usual way.
                return parse_item(&nid.to_string(), base);
            }
            Address::Mask { nid, bits: if nid.is_large() { 128 } else { 32 } }
        }
    };
    Ok(Item { net, address })
}

/// A '/' outside brackets makes a mask, inside them a step.
fn is_mask(address: &str) -> bool {
    address.contains('/') && !address.contains('[')
}

fn parse_mask(address: &str, net: Net, v6: bool, base: usize) -> Result<Address, Stop> {
    let (ip, bits) = match address.find('/') {
        Some(i) => (&address[..i], Some((&address[i + 1..], base + i + 1))),
        None => (address, None),
    };
    let nid = text::parse_ip(ip, net, v6, base)?;
    let full = if nid.is_large() { 128 } else { 32 };
    let bits = match bits {
        Some((t, at)) => bounded(t, at, full)?,
        None => full,
    };
    Ok(Address::Mask { nid, bits })
}

fn parse_quad(address: &str, base: usize) -> Result<[Choice; 4], Stop> {
    let mut at = base;
    let mut quad = Vec::with_capacity(4);
    for part in address.split('.') {
        if quad.len() == 4 {
            return Err((at - 1, "more than four octets"));
        }
        quad.push(Choice::parse(part, at, 255)?);
        at += part.len() + 1;
    }
    quad.try_into().map_err(|_| (base + address.len(), "expected four octets"))
}

/// Splits at white space and at commas outside brackets; yields each piece with its position.
fn pieces(text: &str) -> Vec<(usize, &str)> {
    let mut out = Vec::new();
    let mut depth = 0usize;
    let mut start = 0;
    for (i, c) in text.char_indices() {
        match c {
            '[' => depth += 1,
            ']' => depth = depth.saturating_sub(1),
            c if c.is_whitespace() || (c == ',' && depth == 0) => {
                out.push((start, &text[start..i]));
                start = i + c.len_utf8();
            }
            _ => {}
        }
    }
    out.push((start, &text[start..]));
    out.retain(|(_, piece)| !piece.is_empty());
    out
}

fn parse_list(text: &str) -> Result<NidList, Stop> {
    let pieces = pieces(text);
    if pieces.is_empty() {
        return Err((0, "expected a NID"));
    }
    if pieces.len() > MAX_ITEMS {
        return Err((pieces[MAX_ITEMS].0, "too many items"));
    }
    let items = pieces.into_iter().map(|(at, piece)| parse_item(piece, at)).collect::<Result<_, Stop>>()?;
    Ok(NidList { items })
}

impl FromStr for NidList {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        text::finish(text, parse_list(text))
    }
}

impl fmt::Display for NidList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, item) in self.items.iter().enumerate() {
            if i > 0 {
                f.write_str(" ")?;
            }
            item.fmt(f)?;
        }
        Ok(())
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            Address::All => write!(f, "*@{}", self.net),
            Address::Number(c) => write!(f, "{}@{}", c.show(u32::MAX), self.net),
            Address::Quad(q) => {
                let octets: Vec<String> = q.iter().map(|c| c.show(255)).collect();
                write!(f, "{}@{}", octets.join("."), self.net)
            }
            Address::Mask { nid, bits } if *bits == 32 && !nid.is_large() || *bits == 128 => {
                write!(f, "{nid}")
            }
            Address::Mask { nid, bits } => {
                let text = nid.to_string();
                let ip = text.split('@').next().unwrap_or_default();
                write!(f, "{ip}/{bits}@{}", self.net)
            }
        }
    }
}

impl Choice {
    fn show(&self, max: u32) -> String {
        if let [Span { low: 0, high, step: 1 }] = self.0[..]
            && high == max
        {
            return "*".into();
        }
        if let [Span { low, high, .. }] = self.0[..]
            && low == high
        {
            return low.to_string();
        }
        let spans: Vec<String> = self.0.iter().map(Span::show).collect();
        format!("[{}]", spans.join(","))
    }
}

impl Span {
    fn show(&self) -> String {
        let range =
            if self.low == self.high { self.low.to_string() } else { format!("{}-{}", self.low, self.high) };
        if self.step == 1 { range } else { format!("{range}/{}", self.step) }
    }
}
