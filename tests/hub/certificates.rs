//! Certificates as X.509 has them (RFC 5280), just enough of it: an authority, and those that it signs.

use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// Until when a certificate holds.
#[derive(Clone, Copy, PartialEq)]
pub enum Ends {
    /// After this test.
    Later,
    /// It has ended.
    Before,
}

/// Who signs certificates.
pub struct Authority {
    name: String,
    key: Key,
    certificate: Vec<u8>,
}

/// A key of the curve P-256.
struct Key {
    pkcs8: Vec<u8>,
    pair: EcdsaKeyPair,
}

impl Key {
    fn new() -> Key {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).expect("a key");
        let pkcs8 = pkcs8.as_ref().to_vec();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &pkcs8, &random).expect("a key");
        Key { pkcs8, pair }
    }

    fn sign(&self, bytes: &[u8]) -> Vec<u8> {
        self.pair.sign(&SystemRandom::new(), bytes).expect("a signature").as_ref().to_vec()
    }
}

impl Authority {
    pub fn new(name: &str) -> Authority {
        let key = Key::new();
        // It signs others' certificates.
        let is_authority = extension(&[0x55, 0x1d, 0x13], &sequence(&[&tlv(0x01, &[0xff])]));
        let certificate = certificate([name, name], [&key, &key], Ends::Later, &is_authority);
        Authority { name: name.to_owned(), key, certificate }
    }

    /// The authority's own certificate, as files of trusted ones have it.
    pub fn pem(&self) -> String {
        let lines = base64(&self.certificate);
        format!("-----BEGIN CERTIFICATE-----\n{lines}-----END CERTIFICATE-----\n")
    }

    /// A certificate of a host, and its key.
    pub fn certify(&self, host: &str, ends: Ends) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let key = Key::new();
        let names = extension(&[0x55, 0x1d, 0x11], &sequence(&[&tlv(0x82, host.as_bytes())]));
        let signed = certificate([&self.name, host], [&self.key, &key], ends, &names);
        (signed.into(), PrivatePkcs8KeyDer::from(key.pkcs8).into())
    }
}

/// A value with its tag and length.
fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = match content.len() {
        short @ 0..128 => vec![short as u8],
        // No more bytes than are needed.
        middle @ 128..256 => vec![0x81, middle as u8],
        long => [&[0x82][..], &(long as u16).to_be_bytes()].concat(),
    };
    [&[tag][..], &length, content].concat()
}

fn sequence(parts: &[&[u8]]) -> Vec<u8> {
    tlv(0x30, &parts.concat())
}

fn extension(id: &[u8], value: &[u8]) -> Vec<u8> {
    sequence(&[&tlv(0x06, id), &tlv(0x04, value)])
}

fn bits(bytes: &[u8]) -> Vec<u8> {
    tlv(0x03, &[&[0], bytes].concat())
}

/// A name of one part, the common name.
fn name(text: &str) -> Vec<u8> {
    let part = sequence(&[&tlv(0x06, &[0x55, 0x04, 0x03]), &tlv(0x0c, text.as_bytes())]);
    sequence(&[&tlv(0x31, &part)])
}

/// Of issuer and subject, by their names and keys; ECDSA with SHA-256.
fn certificate([issuer, subject]: [&str; 2], [by, of]: [&Key; 2], ends: Ends, extension: &[u8]) -> Vec<u8> {
    let id = |last: &[u8]| tlv(0x06, &[&[0x2a, 0x86, 0x48, 0xce, 0x3d][..], last].concat());
    let algorithm = sequence(&[&id(&[0x04, 0x03, 0x02])]);
    let curve = sequence(&[&id(&[0x02, 0x01]), &id(&[0x03, 0x01, 0x07])]);
    let last: &[u8] = if ends == Ends::Later { b"491231235959Z" } else { b"210101000000Z" };
    let signed = sequence(&[
        &tlv(0xa0, &tlv(0x02, &[2])),
        &tlv(0x02, &[1]),
        &algorithm,
        &name(issuer),
        &sequence(&[&tlv(0x17, b"200101000000Z"), &tlv(0x17, last)]),
        &name(subject),
        &sequence(&[&curve, &bits(of.pair.public_key().as_ref())]),
        &tlv(0xa3, &sequence(&[extension])),
    ]);
    sequence(&[&signed, &algorithm, &bits(&by.sign(&signed))])
}

/// In lines of 64 letters.
fn base64(bytes: &[u8]) -> String {
    let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for line in bytes.chunks(48) {
        for three in line.chunks(3) {
            let all =
                three.iter().fold(0u32, |all, &byte| all << 8 | u32::from(byte)) << (8 * (3 - three.len()));
            for i in 0..4 {
                let letter = letters[(all >> (18 - 6 * i)) as usize & 63];
                out.push(if i <= three.len() { char::from(letter) } else { '=' });
            }
        }
        out.push('\n');
    }
    out
}
