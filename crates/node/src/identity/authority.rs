//! Keys and certificates: the cluster's authority, which lets nodes in, and what it gives them.

use super::tls::Trust;
use aws_lc_rs::{
    digest::SHA256,
    signature::{ED25519, UnparsedPublicKey},
};
use cluster::Digest;
use proto::{ClusterId, NodeId};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ED25519, PublicKeyData, SanType, SerialNumber, SignatureAlgorithm,
    SigningKey, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, UnixTime};
use std::{fmt, time::Duration};
use webpki::KeyUsage;

/// What the names in certificates begin with.
const SCHEME: &str = "sheepdog://";

/// SHA-256.
pub fn digest(bytes: &[u8]) -> Digest {
    let hash = aws_lc_rs::digest::digest(&SHA256, bytes);
    Digest(hash.as_ref().try_into().expect("SHA-256 has 32 bytes"))
}

/// The public half of a node's key: Ed25519.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PublicKey(pub [u8; 32]);

impl PublicKeyData for PublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ED25519
    }
}

impl PublicKey {
    /// Whether the private half has signed these bytes so.
    pub fn has_signed(&self, bytes: &[u8], signature: &[u8; 64]) -> bool {
        UnparsedPublicKey::new(&ED25519, self.0).verify(bytes, signature).is_ok()
    }
}

/// A private key.
pub struct NodeKey(KeyPair);

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeKey(..)")
    }
}

impl NodeKey {
    /// A new one, drawn at random.
    pub fn draw() -> NodeKey {
        NodeKey(KeyPair::generate_for(&PKCS_ED25519).expect("Ed25519 keys are random numbers"))
    }

    /// From [`NodeKey::bytes`]; nothing if they are something else.
    pub fn from_bytes(bytes: &[u8]) -> Option<NodeKey> {
        let der = PrivatePkcs8KeyDer::from(bytes);
        KeyPair::from_pkcs8_der_and_sign_algo(&der, &PKCS_ED25519).ok().map(NodeKey)
    }

    /// As PKCS #8.
    pub fn bytes(&self) -> Vec<u8> {
        self.0.serialize_der()
    }

    /// Its signature of these bytes.
    pub fn sign(&self, bytes: &[u8]) -> [u8; 64] {
        let signature = self.0.sign(bytes).expect("Ed25519 signs whatever there is");
        signature.try_into().expect("Ed25519 signatures have 64 bytes")
    }

    /// Its public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.public_key_raw().try_into().expect("Ed25519 keys have 32 bytes"))
    }
}

/// What signs the certificates of a cluster's nodes. Each node has it, so that any of them can let
/// another one in.
#[derive(Debug)]
pub struct Authority {
    cluster: ClusterId,
    certificate: CertificateDer<'static>,
    key: NodeKey,
}

impl Authority {
    /// A new one, for a new cluster.
    pub fn found(cluster: ClusterId) -> Authority {
        let key = NodeKey::draw();
        let made = authority_parameters(cluster).self_signed(&key.0);
        let certificate = made.expect("all its fields are well-formed").der().clone();
        Authority { cluster, certificate, key }
    }

    /// From its parts, as another node handed them over. Nothing unless what this key signs is
    /// believed by this certificate.
    pub fn from_parts(cluster: ClusterId, certificate: &[u8], key: &[u8]) -> Option<Authority> {
        let key = NodeKey::from_bytes(key)?;
        let certificate = CertificateDer::from(certificate.to_vec());
        let authority = Authority { cluster, certificate, key };
        let probe = authority.certify(NodeId(1), &authority.key.public());
        let now = UnixTime::since_unix_epoch(Duration::from_secs(1 << 31));
        let trust = Trust::new(cluster, &authority.certificate);
        let believed = trust.node_of(&probe, &[], now, KeyUsage::server_auth());
        (believed == Ok(NodeId(1))).then_some(authority)
    }

    /// Its certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// That of its certificate: what a join token carries.
    pub fn digest(&self) -> Digest {
        digest(&self.certificate)
    }

    /// Its key.
    pub fn key(&self) -> &NodeKey {
        &self.key
    }

    /// A certificate that says that who has this key is this node.
    pub fn certify(&self, node: NodeId, key: &PublicKey) -> CertificateDer<'static> {
        self.sign(node_parameters(self.cluster, node), key)
    }

    /// Any certificate, for tests of those that are wrong.
    pub(crate) fn sign(
        &self,
        parameters: CertificateParams,
        key: &PublicKey,
    ) -> CertificateDer<'static> {
        let own = authority_parameters(self.cluster);
        let issuer = Issuer::from_params(&own, &self.key.0);
        let signed = parameters.signed_by(key, &issuer).expect("all its fields are well-formed");
        signed.der().clone()
    }
}

/// The name of a node in its certificate.
pub(super) fn uri_of(cluster: ClusterId, node: NodeId) -> String {
    format!("{SCHEME}{cluster}/node/{node}")
}

/// The node of this cluster that a name in a certificate means.
pub(super) fn node_of_uri(cluster: ClusterId, uri: &str) -> Option<NodeId> {
    let rest = uri.strip_prefix(SCHEME)?.strip_prefix(&cluster.to_string())?;
    let digits = rest.strip_prefix("/node/")?;
    let node = NodeId(u128::from_str_radix(digits, 16).ok().filter(|&id| id != 0)?);
    // One name for one node, to the letter.
    (uri == uri_of(cluster, node)).then_some(node)
}

/// The dates between which all certificates hold: whatever the clocks of machines say, even those
/// that were never set. What ends a certificate is the node's removal from the map.
fn dated(mut parameters: CertificateParams) -> CertificateParams {
    parameters.not_before = date_time_ymd(1970, 1, 1);
    parameters.not_after = date_time_ymd(9999, 12, 31);
    parameters
}

fn authority_parameters(cluster: ClusterId) -> CertificateParams {
    let mut parameters = dated(CertificateParams::default());
    parameters.distinguished_name.remove(DnType::CommonName);
    parameters.distinguished_name.push(DnType::CommonName, format!("Sheepdog cluster {cluster}"));
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    parameters.serial_number = Some(SerialNumber::from_slice(&[1]));
    parameters
}

pub(super) fn node_parameters(cluster: ClusterId, node: NodeId) -> CertificateParams {
    let mut parameters = dated(CertificateParams::default());
    parameters.distinguished_name.remove(DnType::CommonName);
    parameters.distinguished_name.push(DnType::CommonName, format!("Sheepdog node {node}"));
    let uri = uri_of(cluster, node).try_into().expect("it is ASCII");
    parameters.subject_alt_names = vec![SanType::URI(uri)];
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parameters.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    parameters
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_is_the_same_from_its_parts_and_from_no_others() {
        let cluster = ClusterId(7);
        let made = Authority::found(cluster);
        let (certificate, key) = (made.certificate().to_vec(), made.key().bytes());
        let again = Authority::from_parts(cluster, &certificate, &key).expect("they fit");
        assert_eq!(again.digest(), made.digest());
        assert_eq!(again.key().public(), made.key().public());
        let other = Authority::found(cluster);
        assert_ne!(other.digest(), made.digest());
        assert!(Authority::from_parts(cluster, &certificate, &other.key().bytes()).is_none());
        assert!(Authority::from_parts(ClusterId(8), &certificate, &key).is_none());
        let foreign = other.certificate().to_vec();
        assert!(Authority::from_parts(cluster, &foreign, &key).is_none());
        assert!(Authority::from_parts(cluster, &certificate, &key[..key.len() - 1]).is_none());
    }

    #[test]
    fn a_name_means_one_node_of_one_cluster_and_is_written_in_one_way() {
        let (cluster, node) = (ClusterId(0xab), NodeId(0xcd));
        let uri = uri_of(cluster, node);
        assert_eq!(node_of_uri(cluster, &uri), Some(node));
        assert_eq!(node_of_uri(ClusterId(0xac), &uri), None);
        for wrong in [
            uri.to_uppercase(),
            uri.replace("/node/", "/node/0"),
            uri.replace("/node/", "/node/+"),
            uri.replace("/node/", "/client/"),
            uri.replace("cd", "00"),
            format!("{uri}0"),
            format!("{uri}/"),
            uri[..uri.len() - 1].to_string(),
            String::new(),
        ] {
            assert_eq!(node_of_uri(cluster, &wrong), None, "{wrong}");
        }
    }
}
