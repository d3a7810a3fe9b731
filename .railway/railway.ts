// Annoris on Railway: a web server, two cron services, PostgreSQL and Redis.
// `railway config plan` shows what it would change; docs/deploy.md goes through it.
import { defineRailway, postgres, project, redis, service } from "railway/iac";

export default defineRailway((ctx) => {
  const hot = postgres("postgres");
  const emergency = redis("redis");

  // Shared variables of the environment: entered once in Railway, so that no secret stands here.
  const env = {
    ANNORIS_MASTER_REMOTE: ctx.shared.ANNORIS_MASTER_REMOTE,
    ANNORIS_MASTER_TOKEN: ctx.shared.ANNORIS_MASTER_TOKEN,
    ANNORIS_KEY: ctx.shared.ANNORIS_KEY,
    ANNORIS_ALERTS_URLS: ctx.shared.ANNORIS_ALERTS_URLS,
    DATABASE_URL: hot.env.DATABASE_URL,
    REDIS_URL: emergency.env.REDIS_URL,
  };
  const build = {
    builder: "DOCKERFILE",
    dockerfilePath: "deploy/Dockerfile",
    watchPatterns: ["annoris/**", "deploy/Dockerfile", "deploy/constraints.txt", "pyproject.toml"],
  };
  // A start command replaces the image's entry point, tini included. A run that never ended would
  // make Railway skip all later ones, hence the deadline.
  const run = (seconds, command) =>
    `tini -- annoris schedule run --seconds ${seconds} -- ${command}`;

  const web = service("web", {
    build,
    deploy: {
      startCommand: "tini -- annoris serve --schedule",
      healthcheckPath: "/readyz",
      healthcheckTimeout: 120,
      restartPolicyType: "ON_FAILURE",
      restartPolicyMaxRetries: 10,
      drainingSeconds: 45,
    },
    env: {
      ...env,
      ANNORIS_SERVER_WEBHOOK_SECRET: ctx.shared.ANNORIS_SERVER_WEBHOOK_SECRET,
    },
  });
  const sync = service("sync", {
    build,
    deploy: {
      startCommand: run(840, "sync --full --quiet"),
      cronSchedule: "*/15 * * * *", // UTC, as all of Railway's
      restartPolicyType: "NEVER",
    },
    env,
  });
  const daily = service("daily", {
    build,
    deploy: {
      startCommand: `/bin/sh -c "${run(3000, "verify --quiet")}; a=$?; ${run(3000, "dump --quiet")} && exit $a"`,
      cronSchedule: "23 2 * * *",
      restartPolicyType: "NEVER",
    },
    env,
  });

  return project("annoris", { resources: [hot, emergency, web, sync, daily] });
});
