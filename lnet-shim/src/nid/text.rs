//! Text forms of names: parsing with positions, and printing.
//!
//! Grammar: `ADDR[@LND[NUM]]`, `PID-NID`, `UPID-NID`, `<?>` for ANY, `hex[:hex…]@<type:num>` for unknown types.
//! Printing then parsing gives the same value for every name (tested by property).

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use super::{Lnd, Net, Nid, PID_ANY, PID_USERFLAG, ProcessId};
use crate::error::{Error, ErrorKind};

/// The longest name in characters.
pub(crate) const MAX_TEXT: usize = 64;

/// How the addresses of a network type are written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Dotted quad, and IPv6 text where `v6`.
    Ip { v6: bool },
    /// A decimal number.
    Number,
}

/// Name and address form of a network type.
#[derive(Clone, Copy)]
struct LndInfo {
    lnd: Lnd,
    name: &'static str,
    form: Form,
}

const LNDS: [LndInfo; 10] = [
    LndInfo { lnd: Lnd(2), name: "tcp", form: Form::Ip { v6: true } },
    LndInfo { lnd: Lnd(5), name: "o2ib", form: Form::Ip { v6: false } },
    LndInfo { lnd: Lnd(9), name: "lo", form: Form::Number },
    LndInfo { lnd: Lnd(13), name: "gni", form: Form::Number },
    LndInfo { lnd: Lnd(14), name: "gip", form: Form::Ip { v6: false } },
    LndInfo { lnd: Lnd(15), name: "ptlf", form: Form::Number },
    LndInfo { lnd: Lnd(16), name: "kfi", form: Form::Number },
    LndInfo { lnd: Lnd(17), name: "tofu", form: Form::Number },
    LndInfo { lnd: Lnd(18), name: "efa", form: Form::Ip { v6: true } },
    LndInfo { lnd: Lnd(19), name: "bxi3f", form: Form::Number },
];

fn lnd_info(lnd: Lnd) -> Option<LndInfo> {
    LNDS.iter().find(|i| i.lnd == lnd).copied()
}

pub(crate) fn form_of(net: Net) -> Option<Form> {
    lnd_info(net.lnd).map(|i| i.form)
}

/// A text that is not a name: which character, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseError {
    text: String,
    at: usize,
    reason: &'static str,
}

impl ParseError {
    /// The character (not byte) at which parsing stopped, counted from 1.
    pub fn character(&self) -> usize {
        self.text.get(..self.at).map_or(self.at, |s| s.chars().count()) + 1
    }

    /// Why.
    pub fn reason(&self) -> &'static str {
        self.reason
    }
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, character {}: {}", self.text, self.character(), self.reason)
    }
}

impl std::error::Error for ParseError {}

impl From<ParseError> for Error {
    fn from(e: ParseError) -> Self {
        Error::new(ErrorKind::Parse, "parse", e.to_string())
    }
}

/// Where and why parsing stopped; becomes a [`ParseError`] once the whole text is at hand.
pub(crate) type Stop = (usize, &'static str);

pub(crate) fn finish<T>(text: &str, result: Result<T, Stop>) -> Result<T, ParseError> {
    result.map_err(|(at, reason)| ParseError { text: text.to_owned(), at: at.min(text.len()), reason })
}

/// Parses digits of `radix` in `text`, which begins at `base` of the whole.
pub(crate) fn number(text: &str, base: usize, radix: u32, what: &'static str) -> Result<u32, Stop> {
    if text.is_empty() {
        return Err((base, what));
    }
    if let Some(i) = text.find(|c: char| !c.is_digit(radix)) {
        return Err((base + i, what));
    }
    u32::from_str_radix(text, radix).map_err(|_| (base, "number too big"))
}

/// Splits `ADDR[@NET]`; with it how addresses are written there, `None` for hexadecimal words: on networks without a name, and
/// on any that is written as they are.
pub(crate) fn split_net(text: &str, base: usize) -> Result<(&str, Net, Option<Form>), Stop> {
    let Some((address, net)) = text.split_once('@') else { return Ok((text, Net::TCP, form_of(Net::TCP))) };
    let by_number = net.starts_with('<');
    let net = parse_net(net, base + address.len() + 1)?;
    Ok((address, net, form_of(net).filter(|_| !by_number)))
}

fn parse_net(text: &str, base: usize) -> Result<Net, Stop> {
    if let Some(inner) = text.strip_prefix('<') {
        return parse_unknown_net(inner, base + 1);
    }
    // "o2ib" ends in a letter after a digit: take the longest known name that is a prefix.
    let info = LNDS
        .iter()
        .filter(|i| text.starts_with(i.name))
        .max_by_key(|i| i.name.len())
        .ok_or((base, "unknown network type"))?;
    let digits = &text[info.name.len()..];
    let at = base + info.name.len();
    let value = if digits.is_empty() { 0 } else { number(digits, at, 10, "expected a network number")? };
    let number = u16::try_from(value).map_err(|_| (at, "network number above 65535"))?;
    Ok(Net { lnd: info.lnd, number })
}

fn parse_unknown_net(inner: &str, base: usize) -> Result<Net, Stop> {
    let colon = inner.find(':').ok_or((base, "expected '<type:number>'"))?;
    let end = inner.find('>').filter(|e| *e > colon).ok_or((base + inner.len(), "expected '>'"))?;
    if end + 1 != inner.len() {
        return Err((base + end + 1, "unexpected text after '>'"));
    }
    let lnd = number(&inner[..colon], base, 10, "expected a network type")?;
    let num = number(&inner[colon + 1..end], base + colon + 1, 10, "expected a network number")?;
    let lnd = u8::try_from(lnd).ok().filter(|l| *l != 0xff).ok_or((base, "network type above 254"))?;
    let number = u16::try_from(num).map_err(|_| (base + colon + 1, "network number above 65535"))?;
    Ok(Net { lnd: Lnd(lnd), number })
}

pub(crate) fn parse_nid(text: &str, base: usize) -> Result<Nid, Stop> {
    if text == "<?>" {
        return Ok(Nid::ANY);
    }
    if text.chars().count() > MAX_TEXT {
        return Err((base + MAX_TEXT, "longer than 64 characters"));
    }
    let (address, net, form) = split_net(text, base)?;
    if address.is_empty() {
        return Err((base, "expected an address"));
    }
    match form {
        Some(Form::Number) => Ok(Nid::small(net, number(address, base, 10, "expected a decimal number")?)),
        Some(Form::Ip { v6 }) => parse_ip(address, net, v6, base),
        None => parse_hex_words(address, net, base),
    }
}

/// An IP address on a network, of either kind if it has IPv6 addresses.
pub(crate) fn parse_ip(address: &str, net: Net, v6: bool, base: usize) -> Result<Nid, Stop> {
    match address.contains(':') {
        true if v6 => Ok(Nid::large(net, parse_v6(address, base)?.octets())),
        true => Err((base, "this network has no IPv6 addresses")),
        false => Ok(Nid::small(net, parse_v4(address, base)?.to_bits())),
    }
}

fn parse_v4(text: &str, base: usize) -> Result<Ipv4Addr, Stop> {
    let mut octets = [0u8; 4];
    let mut at = 0;
    let parts: Vec<&str> = text.split('.').collect();
    for (i, part) in parts.iter().enumerate() {
        let Some(slot) = octets.get_mut(i) else { return Err((base + at - 1, "more than four octets")) };
        let value = number(part, base + at, 10, "expected a number 0-255")?;
        *slot = u8::try_from(value).map_err(|_| (base + at, "octet above 255"))?;
        at += part.len() + 1;
    }
    if parts.len() < 4 {
        return Err((base + text.len(), "expected four octets"));
    }
    Ok(Ipv4Addr::from(octets))
}

fn parse_v6(text: &str, base: usize) -> Result<Ipv6Addr, Stop> {
    text.parse().map_err(|_| {
        let bad = text.find(|c: char| !c.is_ascii_hexdigit() && c != ':' && c != '.');
        (base + bad.unwrap_or(text.len()), "not an IPv6 address")
    })
}

fn parse_hex_words(text: &str, net: Net, base: usize) -> Result<Nid, Stop> {
    let mut words = Vec::new();
    let mut at = base;
    for part in text.split(':') {
        words.push(number(part, at, 16, "expected hexadecimal digits")?);
        at += part.len() + 1;
    }
    match words[..] {
        [word] => Ok(Nid::small(net, word)),
        [a, b, c, d] => {
            let mut address = [0; 16];
            for (slot, word) in address.chunks_exact_mut(4).zip([a, b, c, d]) {
                slot.copy_from_slice(&word.to_be_bytes());
            }
            Ok(Nid::large(net, address))
        }
        _ => Err((base, "expected one or four words")),
    }
}

fn parse_process(text: &str) -> Result<ProcessId, Stop> {
    let dash = text.find('-').ok_or((text.len(), "expected '-' after the process id"))?;
    let nid = parse_nid(&text[dash + 1..], dash + 1)?;
    let pid = match &text[..dash] {
        "*" => PID_ANY,
        p => match p.strip_prefix('U') {
            Some(low) => number(low, 1, 10, "expected a process id")? | PID_USERFLAG,
            None => number(p, 0, 10, "expected a process id")?,
        },
    };
    Ok(ProcessId { nid, pid })
}

impl FromStr for Net {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        finish(text, parse_net(text, 0))
    }
}

impl FromStr for Nid {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        finish(text, parse_nid(text, 0))
    }
}

impl FromStr for ProcessId {
    type Err = ParseError;
    fn from_str(text: &str) -> Result<Self, ParseError> {
        finish(text, parse_process(text))
    }
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (lnd_info(self.lnd), self.number) {
            (Some(info), 0) => f.write_str(info.name),
            (Some(info), n) => write!(f, "{}{n}", info.name),
            (None, n) => write!(f, "<{}:{n}>", self.lnd.0),
        }
    }
}

impl fmt::Display for Nid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_any() {
            return f.write_str("<?>");
        }
        let net = self.net();
        let form = form_of(net);
        match (form, self.ip(), self.small_address()) {
            (Some(Form::Ip { .. }), Some(ip), _) => write!(f, "{ip}@{net}"),
            (Some(Form::Number), _, Some(n)) => write!(f, "{n}@{net}"),
            (_, _, Some(n)) => write!(f, "{n:x}@<{}:{}>", net.lnd.0, net.number),
            (_, _, None) => {
                let words: Vec<String> = self.0[4..]
                    .chunks_exact(4)
                    .map(|w| format!("{:x}", u32::from_be_bytes([w[0], w[1], w[2], w[3]])))
                    .collect();
                write!(f, "{}@<{}:{}>", words.join(":"), net.lnd.0, net.number)
            }
        }
    }
}

impl fmt::Debug for Nid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            PID_ANY => write!(f, "*-{}", self.nid),
            pid if pid & PID_USERFLAG != 0 => write!(f, "U{}-{}", pid & !PID_USERFLAG, self.nid),
            pid => write!(f, "{pid}-{}", self.nid),
        }
    }
}

impl serde::Serialize for Nid {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl serde::Serialize for Net {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl serde::Serialize for ProcessId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}
