//! TLS between nodes: who is believed, and the configurations for each kind of connection.
//!
//! A connection says in its first message (ALPN) what it is for, and gets the configuration for
//! that: of a peer, with certificates on both sides, or of a machine that wants to join, which has
//! none. Nothing but TLS 1.3 is built in; there are no tickets, no resumption and no early data, so
//! each connection proves anew who is at its ends, and nothing can be replayed.

use super::authority::{NodeKey, digest, node_of_uri};
use cluster::Digest;
use proto::{ClusterId, NodeId};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
    server::{
        NoServerSessionStorage,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use std::sync::Arc;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

/// What a connection between nodes calls itself.
pub const ALPN_PEER: &[u8] = b"sheepdog-peer/1";
/// What the connection of a machine that wants to join calls itself.
pub const ALPN_JOIN: &[u8] = b"sheepdog-join/1";

/// Why a certificate is not believed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadCredential {
    /// None, or none of a node of this cluster.
    #[error(
        "the other side has no certificate of a node of this cluster ({0}); see what runs at its \
         address, and which cluster its data directory belongs to"
    )]
    Foreign(String),
    /// It is fine, and names another node than it should.
    #[error(
        "the other side has the certificate of node {found} and says that it is node {said}; if \
         its data directory is a copy of another one, stop it"
    )]
    OtherNode {
        /// Whose certificate it is.
        found: NodeId,
        /// Who it should be.
        said: NodeId,
    },
}

/// Whom this node believes: who has a certificate of the cluster's authority.
#[derive(Clone, Debug)]
pub struct Trust {
    cluster: ClusterId,
    authority: Believed,
    provider: Arc<CryptoProvider>,
    /// Authorities that a client is told it may be certified by: none is told, it has only one.
    hints: Vec<DistinguishedName>,
}

#[derive(Clone, Debug)]
enum Believed {
    /// This certificate's key.
    Certificate(CertificateDer<'static>),
    /// That of the certificate with this digest, which the other side brings.
    Digest(Digest),
}

impl Trust {
    /// In the certificates of this authority.
    pub fn new(cluster: ClusterId, authority: &CertificateDer<'static>) -> Trust {
        let authority = Believed::Certificate(authority.clone());
        Trust { cluster, authority, provider: provider(), hints: Vec::new() }
    }

    /// In those of the authority whose certificate has this digest.
    pub fn by_digest(cluster: ClusterId, digest: Digest) -> Trust {
        let authority = Believed::Digest(digest);
        Trust { cluster, authority, provider: provider(), hints: Vec::new() }
    }

    /// The node whose certificate this is, if it is believed now.
    pub fn node_of(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<NodeId, Error> {
        let authority = match &self.authority {
            Believed::Certificate(certificate) => certificate,
            Believed::Digest(wanted) => others
                .iter()
                .find(|other| digest(other) == *wanted)
                .ok_or(CertificateError::UnknownIssuer)?,
        };
        let anchor = anchor_from_trusted_cert(authority).map_err(bad)?;
        let certificate = EndEntityCert::try_from(certificate).map_err(bad)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        certificate
            .verify_for_usage(algorithms, &[anchor], &[], now, usage, None, None)
            .map_err(bad)?;
        let mut names = certificate.valid_uri_names();
        match (names.next().and_then(|uri| node_of_uri(self.cluster, uri)), names.next()) {
            (Some(node), None) => Ok(node),
            _ => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    fn verify_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }
}

/// What is wrong with a certificate, as far as the other side may know.
fn bad(error: webpki::Error) -> Error {
    use webpki::Error as Webpki;
    let what = match error {
        Webpki::CertExpired { .. } => CertificateError::Expired,
        Webpki::CertNotValidYet { .. } => CertificateError::NotValidYet,
        Webpki::UnknownIssuer => CertificateError::UnknownIssuer,
        Webpki::RequiredEkuNotFoundContext(_) => CertificateError::InvalidPurpose,
        Webpki::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        _ => CertificateError::BadEncoding,
    };
    what.into()
}

const TLS12: &str = "TLS 1.2 is not built in";

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        // Which node it should be is known to who has dialled, and compared there.
        self.node_of(certificate, others, now, KeyUsage::server_auth())?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General(TLS12.to_string()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

impl ClientCertVerifier for Trust {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &self.hints
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.node_of(certificate, others, now, KeyUsage::client_auth())?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General(TLS12.to_string()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

/// What everything is computed with.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// What a node shows and whom it believes, on connections of either direction.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// For connections to peers.
    pub dial: Arc<ClientConfig>,
    /// For connections of peers.
    pub accept: Arc<ServerConfig>,
    /// For connections of machines that want to join.
    pub host: Arc<ServerConfig>,
    trust: Trust,
}

impl Credentials {
    /// Those of a node with this certificate and key.
    pub fn new(
        cluster: ClusterId,
        authority: &CertificateDer<'static>,
        certificate: &CertificateDer<'static>,
        key: &NodeKey,
    ) -> Result<Credentials, Error> {
        let trust = Trust::new(cluster, authority);
        let chain = vec![certificate.clone()];
        let mut dial = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(trust.clone()))
            .with_client_auth_cert(chain.clone(), private(key))?;
        quiet(&mut dial, ALPN_PEER);
        let mut accept = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(trust.clone()))
            .with_single_cert(chain, private(key))?;
        forgetful(&mut accept, ALPN_PEER);
        let host = host_config(authority, certificate, key)?;
        Ok(Credentials { dial: Arc::new(dial), accept: Arc::new(accept), host, trust })
    }

    /// The node at the other side of a connection whose handshake is over.
    pub fn peer_node(&self, shown: Option<&[CertificateDer<'_>]>) -> Result<NodeId, BadCredential> {
        let (first, others) = shown
            .and_then(<[_]>::split_first)
            .ok_or_else(|| BadCredential::Foreign("it showed none".to_string()))?;
        // It was believed in the handshake, with its usage: the name is what is wanted here.
        let certificate = EndEntityCert::try_from(first);
        let mut names = certificate.iter().flat_map(|known| known.valid_uri_names());
        let node = names.next().and_then(|uri| node_of_uri(self.trust.cluster, uri));
        match (node, others) {
            (Some(node), _) => Ok(node),
            (None, _) => Err(BadCredential::Foreign("it names no node".to_string())),
        }
    }
}

/// For connections of machines that want to join: they have no certificate yet. This side shows
/// the authority's certificate too, whose digest they have.
pub fn host_config(
    authority: &CertificateDer<'static>,
    certificate: &CertificateDer<'static>,
    key: &NodeKey,
) -> Result<Arc<ServerConfig>, Error> {
    let mut host = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone(), authority.clone()], private(key))?;
    forgetful(&mut host, ALPN_JOIN);
    Ok(Arc::new(host))
}

/// For a machine that wants to join a cluster whose authority's certificate has this digest.
pub fn joining_config(cluster: ClusterId, authority: Digest) -> Result<Arc<ClientConfig>, Error> {
    let trust = Trust::by_digest(cluster, authority);
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(trust))
        .with_no_client_auth();
    quiet(&mut config, ALPN_JOIN);
    Ok(Arc::new(config))
}

fn private(key: &NodeKey) -> PrivateKeyDer<'static> {
    PrivatePkcs8KeyDer::from(key.bytes()).into()
}

fn quiet(config: &mut ClientConfig, protocol: &[u8]) {
    config.alpn_protocols = vec![protocol.to_vec()];
    config.resumption = Resumption::disabled();
    // Nodes have no names that would mean something to DNS.
    config.enable_sni = false;
    config.enable_early_data = false;
}

fn forgetful(config: &mut ServerConfig, protocol: &[u8]) {
    config.alpn_protocols = vec![protocol.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
}

#[cfg(test)]
mod tests {
    use super::super::authority::{Authority, node_parameters};
    use super::*;
    use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, SanType, date_time_ymd};
    use std::time::Duration;

    const CLUSTER: ClusterId = ClusterId(1);
    const NODE: NodeId = NodeId(2);
    /// In 2027.
    const NOW: Duration = Duration::from_secs(1_800_000_000);

    fn judged(
        trust: &Trust,
        certificate: &CertificateDer<'_>,
        now: Duration,
    ) -> Result<NodeId, Error> {
        let now = UnixTime::since_unix_epoch(now);
        let client = trust.node_of(certificate, &[], now, KeyUsage::client_auth());
        let server = trust.node_of(certificate, &[], now, KeyUsage::server_auth());
        match (client, server) {
            (Ok(one), Ok(other)) if one == other => Ok(one),
            (Err(error), _) | (_, Err(error)) => Err(error),
            (Ok(_), Ok(_)) => panic!("two nodes in one certificate"),
        }
    }

    #[test]
    fn what_the_authority_signed_for_a_node_is_believed_whatever_the_clock_says() {
        let authority = Authority::found(CLUSTER);
        let key = NodeKey::draw().public();
        let certificate = authority.certify(NODE, &key);
        let trust = Trust::new(CLUSTER, authority.certificate());
        for seconds in [0, 1, 86_400 * 365, NOW.as_secs(), 1 << 37] {
            let now = Duration::from_secs(seconds);
            assert_eq!(judged(&trust, &certificate, now), Ok(NODE), "{seconds}");
        }
    }

    #[test]
    fn no_other_certificate_is_believed() {
        let authority = Authority::found(CLUSTER);
        let key = NodeKey::draw().public();
        let trust = Trust::new(CLUSTER, authority.certificate());
        let check = |change: &dyn Fn(&mut CertificateParams), expected: CertificateError| {
            let mut parameters = node_parameters(CLUSTER, NODE);
            change(&mut parameters);
            let certificate = authority.sign(parameters, &key);
            let found = judged(&trust, &certificate, NOW);
            assert_eq!(found, Err(Error::InvalidCertificate(expected)));
        };
        let uri = |text: &str| SanType::URI(text.try_into().expect("ASCII"));
        use CertificateError as Bad;
        check(&|p| p.not_after = date_time_ymd(2020, 1, 1), Bad::Expired);
        check(&|p| p.not_before = date_time_ymd(2100, 1, 1), Bad::NotValidYet);
        check(
            &|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning],
            Bad::InvalidPurpose,
        );
        check(
            &|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth],
            Bad::InvalidPurpose,
        );
        let nameless = Bad::ApplicationVerificationFailure;
        check(&|p| p.subject_alt_names.clear(), nameless.clone());
        check(&|p| p.subject_alt_names.push(uri("sheepdog://2/node/2")), nameless.clone());
        check(&|p| p.subject_alt_names = vec![uri("https://example.org")], nameless.clone());
        check(
            &|p| p.subject_alt_names = node_parameters(ClusterId(9), NODE).subject_alt_names,
            nameless,
        );
        let stranger = |certificate: &CertificateDer<'_>| {
            assert!(judged(&trust, certificate, NOW).is_err());
        };
        // An authority of the same name, another cluster's, its own, and no certificate at all.
        stranger(&Authority::found(CLUSTER).certify(NODE, &key));
        stranger(&Authority::found(ClusterId(9)).certify(NODE, &key));
        stranger(authority.certificate());
        stranger(&CertificateDer::from(vec![0x30, 0]));
        stranger(&CertificateDer::from(Vec::new()));
    }

    #[test]
    fn a_newcomer_believes_only_the_authority_of_its_token() {
        let authority = Authority::found(CLUSTER);
        let certificate = authority.certify(NODE, &NodeKey::draw().public());
        let other = Authority::found(CLUSTER);
        let now = UnixTime::since_unix_epoch(NOW);
        let judge = |trust: &Trust, certificate: &CertificateDer<'_>, brought: &Authority| {
            let brought = [brought.certificate().clone()];
            trust.node_of(certificate, &brought, now, KeyUsage::server_auth())
        };
        let trust = Trust::by_digest(CLUSTER, authority.digest());
        assert_eq!(judge(&trust, &certificate, &authority), Ok(NODE));
        // The right authority beside a certificate that it did not make, and the reverse.
        let forged = other.certify(NODE, &NodeKey::draw().public());
        assert!(judge(&trust, &forged, &authority).is_err());
        assert!(judge(&trust, &forged, &other).is_err());
        assert!(judge(&trust, &certificate, &other).is_err());
        let trust = Trust::by_digest(CLUSTER, other.digest());
        assert!(judge(&trust, &certificate, &authority).is_err());
        let trust = Trust::by_digest(ClusterId(9), authority.digest());
        assert!(judge(&trust, &certificate, &authority).is_err());
    }
}
