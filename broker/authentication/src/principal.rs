//! Principals, and the rules that make one of a certificate's name (KIP-371, `SslPrincipalMapper`).

use std::{fmt, sync::Arc};

use regex::{Regex, RegexBuilder};
use rustls::pki_types::CertificateDer;

use crate::{TlsError, distinguished_name};

const KEY: &str = "ssl.principal.mapping.rules";
/// What one pattern may take when it is compiled.
const PATTERN_BYTES_MAX: usize = 1 << 20;

/// Who a connection belongs to, as Kafka names it: `User:` and a name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Principal {
    name: Arc<str>,
}

/// `ssl.principal.mapping.rules`.
#[derive(Debug, Clone)]
pub struct PrincipalRules(Vec<Rule>);

#[derive(Debug, Clone)]
enum Rule {
    /// The whole name as it is.
    Default,
    Replace {
        /// Matches a whole name.
        whole: Regex,
        /// The same pattern anywhere in it.
        pattern: Regex,
        replacement: Vec<Piece>,
        case: Case,
    },
}

/// A part of a replacement.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Group(usize),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Case {
    Kept,
    Lower,
    Upper,
}

impl Principal {
    /// Who has shown no certificate, and what everyone is on a plaintext listener.
    pub fn anonymous() -> Self {
        Self { name: Arc::from("ANONYMOUS") }
    }

    /// Who a broker says that its client is.
    pub fn forwarded(name: &str) -> Self {
        Self { name: Arc::from(name) }
    }

    /// The name without `User:`.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for Principal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "User:{}", self.name)
    }
}

impl PrincipalRules {
    /// Reads rules: `DEFAULT`, or `RULE:pattern/replacement/` with an `L` or `U` for lower or upper case, separated by commas.
    pub fn parse(text: &str) -> Result<Self, TlsError> {
        let mut rules = Vec::new();
        let mut rest = text.trim();
        while !rest.is_empty() {
            let (rule, after) = if let Some(after) = rest.strip_prefix("RULE:") {
                let (pattern, after) = until_slash(after).ok_or_else(|| invalid(rest))?;
                let (replacement, after) = until_slash(after).ok_or_else(|| invalid(rest))?;
                let (case, after) = match after.as_bytes().first() {
                    Some(b'L') => (Case::Lower, &after[1..]),
                    Some(b'U') => (Case::Upper, &after[1..]),
                    _ => (Case::Kept, after),
                };
                (Some(Rule::replace(pattern, replacement, case)?), after)
            } else if let Some(after) = rest.strip_prefix("DEFAULT") {
                (Some(Rule::Default), after)
            } else {
                // Kafka ignores an empty rule.
                (None, rest)
            };
            let after = after.trim_start();
            let next = if after.is_empty() { after } else { after.strip_prefix(',').ok_or_else(|| invalid(rest))? };
            rules.extend(rule);
            rest = next.trim_start();
        }
        Ok(Self(rules))
    }

    /// The principal of a peer's chain, its own certificate first; `None` where its name cannot be read or no rule fits it.
    pub fn principal(&self, chain: Option<&[CertificateDer<'_>]>) -> Option<Principal> {
        let Some(own) = chain.and_then(<[_]>::first) else { return Some(Principal::anonymous()) };
        let name = self.apply(&distinguished_name::subject(own)?)?;
        Some(Principal { name: name.into() })
    }

    fn apply(&self, name: &str) -> Option<String> {
        self.0.iter().find_map(|rule| rule.apply(name))
    }
}

impl Rule {
    fn replace(pattern: &str, replacement: &str, case: Case) -> Result<Self, TlsError> {
        let compile = |pattern: &str| {
            RegexBuilder::new(pattern).size_limit(PATTERN_BYTES_MAX).build().map_err(|error| TlsError::Value {
                key: KEY,
                value: format!("the pattern {pattern}"),
                allowed: format!("regular expressions without look-around and back references ({error})"),
            })
        };
        let plain = compile(pattern)?;
        let replacement = pieces(replacement, plain.captures_len() - 1).ok_or_else(|| invalid(replacement))?;
        Ok(Self::Replace { whole: compile(&format!(r"\A(?:{pattern})\z"))?, pattern: plain, replacement, case })
    }

    fn apply(&self, name: &str) -> Option<String> {
        let Self::Replace { whole, pattern, replacement, case } = self else { return Some(name.to_owned()) };
        if !whole.is_match(name) {
            return None;
        }
        let result = replace_all(pattern, replacement, name);
        Some(match case {
            Case::Kept => result,
            Case::Lower => result.to_lowercase(),
            Case::Upper => result.to_uppercase(),
        })
    }
}

/// `String.replaceAll` of Java, which finds an empty match also right behind another: `.*` matches twice.
fn replace_all(pattern: &Regex, replacement: &[Piece], text: &str) -> String {
    let mut result = String::new();
    let (mut copied, mut from) = (0, 0);
    while let Some(groups) = pattern.captures_at(text, from) {
        let Some(found) = groups.get(0) else { break };
        result.push_str(&text[copied..found.start()]);
        for piece in replacement {
            match piece {
                Piece::Text(text) => result.push_str(text),
                Piece::Group(index) => result.push_str(groups.get(*index).map_or("", |group| group.as_str())),
            }
        }
        copied = found.end();
        from = found.end();
        if found.is_empty() {
            let Some(next) = text[from..].chars().next() else { break };
            from += next.len_utf8();
        }
    }
    result.push_str(&text[copied..]);
    result
}

/// A replacement in Java's form: `$1` is a group, `\x` is x. A group that the pattern does not have is text, as Kafka has it.
fn pieces(replacement: &str, groups: usize) -> Option<Vec<Piece>> {
    let mut pieces = vec![Piece::Text(String::new())];
    let mut push = |piece: Piece| match (piece, pieces.last_mut()) {
        (Piece::Text(more), Some(Piece::Text(text))) => text.push_str(&more),
        (piece, _) => pieces.push(piece),
    };
    let mut characters = replacement.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\\' => push(Piece::Text(characters.next()?.to_string())),
            '$' => {
                let mut group = characters.next_if(char::is_ascii_digit)?.to_digit(10)? as usize;
                if group > groups {
                    push(Piece::Text(format!("${group}")));
                    continue;
                }
                // As in Java, another digit belongs to the number as long as there is such a group.
                while let Some(digit) = characters.peek().and_then(|next| next.to_digit(10))
                    && group * 10 + digit as usize <= groups
                {
                    group = group * 10 + digit as usize;
                    characters.next();
                }
                push(Piece::Group(group));
            }
            _ => push(Piece::Text(character.to_string())),
        }
    }
    Some(pieces)
}

/// The text before the first slash that has no backslash before it, and the text after it.
fn until_slash(text: &str) -> Option<(&str, &str)> {
    let mut escaped = false;
    for (index, character) in text.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '/' => return Some((&text[..index], &text[index + 1..])),
            _ => {}
        }
    }
    None
}

fn invalid(rule: &str) -> TlsError {
    TlsError::Value {
        key: KEY,
        value: format!("the rule {rule}"),
        allowed: "DEFAULT and RULE:pattern/replacement/ with L or U behind it, separated by commas".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped(rules: &str, name: &str) -> Option<String> {
        PrincipalRules::parse(rules).unwrap().apply(name)
    }

    #[test]
    fn the_first_rule_that_matches_a_whole_name_makes_the_principal() {
        let rules = r"RULE:^CN=(.*?),OU=ServiceUsers.*$/$1/, RULE:^CN=(.*?),OU=(.*?),O=(.*?),L=(.*?),ST=(.*?),C=(.*?)$/$1@$2/L, RULE:^.*[Cc][Nn]=([a-zA-Z0-9.]*).*$/$1/U,DEFAULT";
        let mapped = |name| mapped(rules, name);
        assert_eq!(mapped("CN=kafka-server1, OU=KAFKA").as_deref(), Some("KAFKA"));
        assert_eq!(mapped("CN=serviceuser,OU=ServiceUsers,O=Unknown,C=DE").as_deref(), Some("serviceuser"));
        assert_eq!(mapped("CN=adminUser,OU=Admin,O=O,L=L,ST=S,C=C").as_deref(), Some("adminuser@admin"));
        assert_eq!(mapped("OU=nobody").as_deref(), Some("OU=nobody"));
    }

    #[test]
    fn a_rule_has_to_match_the_whole_name() {
        assert_eq!(mapped("RULE:CN=a/x/", "CN=a,O=b"), None);
        assert_eq!(mapped("RULE:CN=a.*/x/", "CN=a,O=b").as_deref(), Some("x"));
        assert_eq!(mapped("RULE:CN=a|CN=ab/x/", "CN=ab").as_deref(), Some("xb"), "Java replaces what it finds first");
    }

    #[test]
    fn replacements_are_javas() {
        assert_eq!(mapped(r"RULE:CN=(.*),O=\/(.*)/$2\/\$$1$3/", "CN=a,O=/b").as_deref(), Some("b/$a$3"));
        assert_eq!(mapped("RULE:.*/x/", "CN=a").as_deref(), Some("xx"), "the empty match at the end is replaced, too");
        assert_eq!(mapped("RULE:CN=(.*)/$10/", "CN=a").as_deref(), Some("a0"));
    }

    #[test]
    fn what_is_no_rule_is_refused_with_what_is() {
        for wrong in ["RULE:a/b", "RULE:a/b/X", "ALL", "DEFAULT DEFAULT", "RULE:a/$x/", "RULE:(?=a)/b/"] {
            let error = PrincipalRules::parse(wrong).unwrap_err().to_string();
            assert!(error.starts_with("ssl.principal.mapping.rules has the"), "{error}");
        }
    }

    #[test]
    fn who_shows_no_certificate_is_anonymous() {
        let principal = PrincipalRules::parse("RULE:x/y/").unwrap().principal(None).unwrap();
        assert_eq!(principal.to_string(), "User:ANONYMOUS");
    }
}
