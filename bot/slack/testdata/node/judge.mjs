// A small app on the real @slack/bolt. The tests connect it to our own Slack server:
// what bolt accepts from that, it would accept from Slack.
//
//	node judge.mjs API_URL socket
//	node judge.mjs API_URL http PORT
import bolt from '@slack/bolt';

const [api, mode, port] = process.argv.slice(2);
const common = {
  token: 'xoxb-0-footplate-test',
  clientOptions: { slackApiUrl: api, retryConfig: { retries: 0 } },
  logLevel: 'error',
};
const app = mode === 'socket'
  ? new bolt.App({ ...common, socketMode: true, appToken: 'xapp-1-A0FLEET-0-test' })
  : new bolt.App({ ...common, signingSecret: '8f742231b10e8888abcd99yyyzzz85a5' });

app.command('/footplate', async ({ command, ack, client }) => {
  await ack({ response_type: 'ephemeral', text: `bolt heard ${command.text} from ${command.user_id}` });
  if (command.text === 'ask') {
    await client.chat.postMessage({
      channel: command.channel_id,
      text: 'bolt asks',
      metadata: { event_type: 'judge', event_payload: { id: 'one' } },
      blocks: [
        { type: 'section', text: { type: 'mrkdwn', text: 'bolt asks' } },
        { type: 'actions', block_id: 'ask', elements: [{ type: 'button', action_id: 'yes', value: 'v1', text: { type: 'plain_text', text: 'Yes' } }] },
      ],
    });
  }
});

app.action('yes', async ({ ack, body, action, client, respond }) => {
  await ack();
  await client.chat.update({ channel: body.channel.id, ts: body.message.ts, text: `bolt was told ${action.value} by ${body.user.id}` });
  await respond({ response_type: 'ephemeral', replace_original: false, text: 'bolt thanks' });
});

app.event('app_mention', async ({ event, say }) => {
  await say({ text: `bolt was mentioned: ${event.text}`, thread_ts: event.thread_ts ?? event.ts });
});

app.message(async ({ message, say }) => {
  if (message.channel_type === 'im') await say(`bolt was told: ${message.text}`);
});

app.error(async (e) => console.error(String(e)));
await app.start(mode === 'http' ? { port: Number(port), host: '127.0.0.1' } : undefined);
console.log('ready');
