//! Distinguished names as text, letter for letter as Java's `X500Principal.getName()` prints them (RFC 2253): rules and
//! access lists of users are written against that text.

use std::fmt::Write;

use x509_cert::{
    Certificate,
    attr::AttributeTypeAndValue,
    der::{Decode, Encode, Tag, Tagged},
    name::Name,
};

/// The attributes that RFC 2253 has a word for; others are printed by number.
const KEYWORDS: [(&str, &str); 9] = [
    ("2.5.4.3", "CN"),
    ("2.5.4.6", "C"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.9", "STREET"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("0.9.2342.19200300.100.1.25", "DC"),
    ("0.9.2342.19200300.100.1.1", "UID"),
];

/// The subject of a certificate; `None` where it cannot be read.
pub(crate) fn subject(certificate: &[u8]) -> Option<String> {
    let certificate = Certificate::from_der(certificate).ok()?;
    print(certificate.tbs_certificate().subject())
}

fn print(name: &Name) -> Option<String> {
    let mut text = String::new();
    let mut names: Vec<_> = name.iter_rdn().collect();
    names.reverse();
    for (index, relative) in names.into_iter().enumerate() {
        if index > 0 {
            text.push(',');
        }
        for (index, attribute) in relative.iter().enumerate() {
            if index > 0 {
                text.push('+');
            }
            print_attribute(&mut text, attribute)?;
        }
    }
    Some(text)
}

fn print_attribute(text: &mut String, attribute: &AttributeTypeAndValue) -> Option<()> {
    let number = attribute.oid.to_string();
    let keyword = KEYWORDS.iter().find(|(known, _)| *known == number).map(|(_, keyword)| *keyword);
    text.push_str(keyword.unwrap_or(&number));
    text.push('=');
    // General strings (27) are among Java's, too.
    let is_text = matches!(
        attribute.value.tag(),
        Tag::Utf8String
            | Tag::PrintableString
            | Tag::TeletexString
            | Tag::Ia5String
            | Tag::BmpString
            | Tag::GeneralString
    );
    if keyword.is_some() && is_text {
        // Java takes the bytes of each of these types for UTF-8.
        print_text(text, &String::from_utf8_lossy(attribute.value.value()));
    } else {
        text.push('#');
        for byte in attribute.value.to_der().ok()? {
            write!(text, "{byte:02x}").ok()?;
        }
    }
    Some(())
}

fn print_text(text: &mut String, value: &str) {
    let is_space = |character: char| matches!(character, ' ' | '\r');
    let length = value.chars().count();
    let leading = value.chars().take_while(|character| is_space(*character)).count();
    let trailing = length - value.chars().rev().take_while(|character| is_space(*character)).count();
    for (index, character) in value.chars().enumerate() {
        match character {
            '\0' => text.push_str("\\00"),
            ',' | '=' | '+' | '<' | '>' | '#' | ';' | '"' | '\\' => text.extend(['\\', character]),
            _ if index < leading || index >= trailing => text.extend(['\\', character]),
            _ => text.push(character),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each encoded name, and what Java 17 prints for it.
    const PRINTED_BY_JAVA: [(&str, &str); 18] = [
        (
            "3049310b3009060355040613024445310a30080603550408130165310a30080603550407130164310a3008060355040a130163310a\
             3008060355040b130162310a30080603550403130161",
            "CN=a,OU=b,O=c,L=d,ST=e,C=DE",
        ),
        (
            "306a310a300806035504091301733111300f060a0992268993f22c64010113017531133011060a0992268993f22c6401191603636f\
             6d31173015060a0992268993f22c64011916076578616d706c65311b301906035504030c12782c792b7a3d31203c613e3b23625c63\
             2264",
            r#"CN=x\,y\+z\=1 \<a\>\;\#b\\c\"d,DC=example,DC=com,UID=u,STREET=s"#,
        ),
        (
            "3022310a3008060355040313016e3114301206092a864886f70d01090116056140622e63",
            "1.2.840.113549.1.9.1=#16056140622e63,CN=n",
        ),
        ("3022310a3008060355040a1301633114300806035504031301613008060355040b130162", "CN=a+OU=b,O=c"),
        ("3019310a3008060355040313016e310b3009060355040513023132", "2.5.4.5=#13023132,CN=n"),
        ("3023310a3008060355040a1301633115301306035504030c0cc3bc6d6cc3a4757420e6bca2", "CN=ümläut 漢,O=c"),
        ("30123110300e06035504030c0720206120622020", r"CN=\ \ a b\ \ "),
        ("300d310b300906035504030c022368", r"CN=\#h"),
        ("300e310c300a06035504030c03610062", r"CN=a\00b"),
        ("300f310d300b06035504031e0400626f22", "CN=\\00bo\\\""),
        ("300b3109300706035504030c00", "CN="),
        ("300e310c300a06035504030c03202020", r"CN=\ \ \ "),
        ("300f310d300b06035504030c040d20610a", "CN=\\\r\\ a\n"),
        ("300d310b300906035504031402e478", "CN=\u{fffd}x"),
        ("300e310c300a06035504031603614062", "CN=a@b"),
        ("300c310a30080603550403020105", "CN=#020105"),
        ("300d310b3009060355040312023132", "CN=#12023132"),
        ("3000", ""),
    ];

    #[test]
    fn names_are_printed_as_java_prints_them() {
        for (encoded, printed) in PRINTED_BY_JAVA {
            let bytes: Vec<u8> =
                (0..encoded.len()).step_by(2).map(|at| u8::from_str_radix(&encoded[at..at + 2], 16).unwrap()).collect();
            assert_eq!(print(&Name::from_der(&bytes).unwrap()).as_deref(), Some(printed));
        }
    }

    #[test]
    fn what_is_no_certificate_has_no_subject() {
        assert_eq!(subject(b"no certificate"), None);
    }
}
