//! The harness itself: servers that are killed, frozen and restarted, credentials, certificates, and the proxy. What
//! the other tests rely on is shown here with a bare NATS client.

use std::time::{Duration, SystemTime};

use async_nats::{ConnectOptions, jetstream};
use futures_util::StreamExt;
use metricbus_integration_tests::{
    nats::{
        Authority, Config, NatsServer, Operator, Outcome, Proxy, Release, User, answers, until,
        until_it_answers,
    },
    on_each_server,
};

async fn a_killed_server_comes_back_on_its_port(release: Release) -> Outcome {
    let mut server = NatsServer::start(release);
    let address = server.address();
    let client = server.client().await;
    until_it_answers(&client).await;
    server.kill();
    assert!(async_nats::connect(server.url()).await.is_err());
    server.restart();
    assert_eq!(server.address(), address);
    until_it_answers(&client).await;
    server.stop();
    assert!(async_nats::connect(server.url()).await.is_err());
    assert!(server.log().contains("Server is ready"), "{}", server.log());
    Ok(())
}

async fn the_store_is_kept_or_lost_as_told(release: Release) -> Outcome {
    let mut server = NatsServer::jetstream(release);
    let client = server.client().await;
    let context = jetstream::new(client.clone());
    let config = jetstream::stream::Config {
        name: "ALERTS".to_owned(),
        subjects: vec!["alerts.>".to_owned()],
        ..Default::default()
    };
    context.create_stream(config).await?;
    context.publish("alerts.one", "1".into()).await?.await?;

    server.restart();
    until_it_answers(&client).await;
    let stream = context.get_stream("ALERTS").await?;
    assert_eq!(stream.get_info().await?.state.messages, 1);

    server.restart_without_store();
    until_it_answers(&client).await;
    assert!(context.get_stream("ALERTS").await.is_err());
    Ok(())
}

async fn a_frozen_server_keeps_its_connections_and_answers_when_it_thaws(
    release: Release,
) -> Outcome {
    let mut server = NatsServer::start(release);
    let client = server.client().await;
    until_it_answers(&client).await;
    server.freeze();
    assert!(!answers(&client).await);
    server.thaw();
    until_it_answers(&client).await;
    assert_eq!(
        client
            .statistics()
            .connects
            .load(std::sync::atomic::Ordering::Relaxed),
        1
    );
    Ok(())
}

async fn who_is_not_known_is_refused(release: Release) -> Outcome {
    let key = nkeys::KeyPair::new_user();
    let config = Config::core()
        .user(User::password("worker", "secret").deny_publish(&["closed.>"]))
        .user(User::nkey(&key.public_key()));
    let server = NatsServer::with(release, config);
    assert!(async_nats::connect(server.url()).await.is_err());
    let wrong = ConnectOptions::with_user_and_password("worker".into(), "wrong".into());
    assert!(wrong.connect(server.url()).await.is_err());
    let right = ConnectOptions::with_user_and_password("worker".into(), "secret".into());
    let client = right.connect(server.url()).await?;
    let right = ConnectOptions::with_nkey(key.seed()?);
    let other = right.connect(server.url()).await?;

    let mut all = other.subscribe("*.to.it").await?;
    until_it_answers(&other).await;
    client.publish("closed.to.it", "1".into()).await?;
    client.publish("open.to.it", "2".into()).await?;
    let first = all.next().await.ok_or("no message")?;
    assert_eq!(first.subject.as_str(), "open.to.it");
    Ok(())
}

async fn credentials_are_good_for_the_operator_of_the_server_until_they_expire(
    release: Release,
) -> Outcome {
    let operator = Operator::new();
    let server = NatsServer::with(release, Config::core().operator(&operator));
    let connect = async |credentials: &str| {
        ConnectOptions::with_credentials(credentials)?
            .connect(server.url())
            .await
            .map_err(Box::<dyn std::error::Error>::from)
    };
    let soon = SystemTime::now() + Duration::from_secs(600);
    for good in [operator.credentials(), operator.credentials_until(soon)] {
        until_it_answers(&connect(&good).await?).await;
    }
    for bad in [
        operator.expired_credentials(),
        Operator::new().credentials(),
    ] {
        assert!(connect(&bad).await.is_err());
    }
    Ok(())
}

async fn certificates_are_good_for_those_who_trust_their_authority(release: Release) -> Outcome {
    let authority = Authority::new();
    let server = NatsServer::with(release, Config::core().tls(&authority).verify_clients());
    let trusting = |authority: &Authority| {
        ConnectOptions::new()
            .require_tls(true)
            .add_root_certificates(authority.root())
    };
    let own = authority.client();
    let client = trusting(&authority)
        .add_client_certificate(own.certificate, own.key)
        .connect(server.url())
        .await?;
    until_it_answers(&client).await;

    assert!(trusting(&authority).connect(server.url()).await.is_err());
    let stranger = Authority::new();
    assert!(trusting(&stranger).connect(server.url()).await.is_err());
    let theirs = stranger.client();
    let wrong = trusting(&authority).add_client_certificate(theirs.certificate, theirs.key);
    assert!(wrong.connect(server.url()).await.is_err());
    Ok(())
}

async fn the_proxy_delays_swallows_stalls_and_cuts(release: Release) -> Outcome {
    let server = NatsServer::start(release);
    let proxy = Proxy::before(server.address());
    let client = async_nats::connect(proxy.url()).await?;
    until_it_answers(&client).await;
    assert_eq!(proxy.connections(), 1);

    proxy.delay(Duration::from_millis(20));
    assert!(answers(&client).await);

    proxy.stall();
    assert!(!answers(&client).await);
    // Nothing was lost: the same connection goes on.
    proxy.pass();
    until_it_answers(&client).await;
    assert_eq!(proxy.connections(), 1);

    proxy.swallow();
    assert!(!answers(&client).await);
    // Whoever comes now is taken, and hears nothing.
    let patience = ConnectOptions::new().connection_timeout(Duration::from_millis(200));
    assert!(patience.connect(proxy.url()).await.is_err());
    proxy.pass();
    until_it_answers(&client).await;

    let before = proxy.connections();
    proxy.cut();
    until("a new connection", || {
        (proxy.connections() > before).then_some(())
    })
    .await;
    until_it_answers(&client).await;

    proxy.refuse();
    assert!(async_nats::connect(proxy.url()).await.is_err());
    Ok(())
}

on_each_server!(
    a_killed_server_comes_back_on_its_port,
    the_store_is_kept_or_lost_as_told,
    a_frozen_server_keeps_its_connections_and_answers_when_it_thaws,
    who_is_not_known_is_refused,
    credentials_are_good_for_the_operator_of_the_server_until_they_expire,
    certificates_are_good_for_those_who_trust_their_authority,
    the_proxy_delays_swallows_stalls_and_cuts,
);
