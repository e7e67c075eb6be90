#!/usr/bin/env python3
"""Conversations as transformers renders them: pip install transformers==5.23.0; chat.py tests/golden/chat/cases.json

Templates written to use what those of real models use: loops with their variables, namespaces, macros, methods of Python's strings and
dictionaries, slices, tests, `tojson`, tools and tool calls, white-space control, `raise_exception`, `strftime_now`, generation tags.
"""

import json
import sys

from transformers.utils.chat_template_utils import render_jinja_template

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Says what the weather is: <b>now</b>, in °C & 'words'",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer", "default": 1}}, "required": ["city"]},
        },
    }
]
PLAIN = [
    {"role": "system", "content": "Be brief.\n"},
    {"role": "user", "content": "  Grüße — how <are> you? "},
    {"role": "assistant", "content": "<think>hm</think>\nFine & well.\n"},
    {"role": "user", "content": "日本語で"},
]
CALLS = [
    {"role": "user", "content": "Weather in Bern?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Bern", "days": 2}}}],
    },
    {"role": "tool", "tool_call_id": "call_1", "name": "weather", "content": '{"t": 21.5, "ok": true}'},
    {"role": "assistant", "content": "21.5 °C."},
]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "image"}, {"type": "text", "text": "two"}]}]

LOOPS = """{{ bos_token }}{% set ns = namespace(system='', first=true) %}
{%- for message in messages if message['role'] == 'system' %}{% set ns.system = ns.system + message.content.strip() %}{% endfor %}
{%- for message in messages %}
    {%- if message.role != 'system' %}
        {%- if loop.first or ns.first %}[{{ ns.system | upper }}|{{ loop.index }}/{{ loop.length }}]{% set ns.first = false %}{% endif %}
        {{- '<|' ~ message['role'] | title ~ '|>' + message['content'] | trim + ('' if loop.last else eos_token) }}
        {%- if not loop.last and loop.nextitem.role == 'user' %}{{ '^' }}{% endif %}
    {%- endif %}
{%- endfor %}
{% if add_generation_prompt %}<|assistant|>
{% endif %}
"""
METHODS = """{% for m in messages %}
{% set text = m.content %}
{% if '</think>' in text %}{% set text = text.split('</think>')[-1].lstrip('\\n') %}{% endif %}
{{ loop.index0 }}: {{ text[:5] }}|{{ text[-3:] }}|{{ text[::2][:4] }}|{{ text.startswith(('  G', 'x')) }}|{{ text.replace('e', 'E').rstrip() }}|{{ text | length }}
{% endfor %}
{{ messages[::-1][0].role }} {{ messages[1:] | length }} {{ messages | map(attribute='role') | join(', ') }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }}
{{ {'a': 1, 'b': [1, 2.5, none, true]} | tojson }} {{ {'z': 'ü<', 'a': {'k': []}} | tojson(indent=2) }} {{ strftime_now('%%Y is a year') }}
{% for key, value in {'x': 1, 'y': 2}.items() %}{{ key }}={{ value }}{{ ',' if not loop.last }}{% endfor %}
{{ 7 // 2 }} {{ 7 % 3 }} {{ 2 ** 5 }} {{ 1.0 }} {{ none }} {{ true }} {{ 'a' is string }} {{ messages is sequence }} {{ missing is defined }} {{ missing | default('none') }} {{ [3, 1, 2] | sort | first }} {{ ' a b '.split() }}
"""
TOOL_USE = """{%- macro describe(tool) -%}
{{ tool.function.name }}({% for name, p in tool.function.parameters.properties.items() %}{{ name }}: {{ p.type }}{% if p.default is defined %} = {{ p.default }}{% endif %}{{ ", " if not loop.last }}{% endfor %})
{%- endmacro -%}
{%- if tools %}{% for tool in tools %}{{ describe(tool) }}
{{ tool | tojson }}
{% endfor %}{% endif -%}
{%- for message in messages -%}
{%- if message.tool_calls is defined and message.tool_calls -%}
{% for call in message.tool_calls %}<call id={{ call.id }}>{{ call.function | tojson }}</call>{% endfor %}
{%- elif message.role == 'tool' -%}
<result {{ message.tool_call_id }} {{ message['name'] }}>{{ message.content }}</result>
{%- elif message.content is string -%}
<{{ message.role }}>{{ message.content }}
{%- else -%}
{% for part in message.content %}{% if part.type == 'text' %}{{ part['text'] }}{% else %}<{{ part.type }}>{% endif %}{% endfor %}
{%- endif -%}
{%- endfor -%}
"""
GENERATION = """{% for m in messages %}
{% if m.role == 'assistant' %}
{% generation %}
{{ m.content }}{{ eos_token }}
{% endgeneration %}
{% else %}
{%- continue %}
{% endif %}
{% if loop.index > 3 %}{% break %}{% endif %}
{% endfor %}"""
RAISES = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported: ' + messages[0].content) }}{% endif %}{{ messages[0].content }}"

CASES = [
    ("loops", LOOPS, PLAIN, None, True),
    ("loops without prompt", LOOPS, PLAIN, None, False),
    ("methods", METHODS, PLAIN, None, False),
    ("tools", TOOL_USE, CALLS, TOOLS, True),
    ("no tools", TOOL_USE, CALLS, None, False),
    ("parts", TOOL_USE, PARTS, None, False),
    ("generation", GENERATION, PLAIN, None, False),
    ("raises", RAISES, PLAIN, None, False),
    ("does not raise", RAISES, PLAIN[1:], None, False),
]


def main():
    out = []
    for name, template, messages, tools, prompt in CASES:
        case = {"name": name, "template": template, "messages": messages, "tools": tools, "add_generation_prompt": prompt}
        try:
            rendered, _ = render_jinja_template(
                conversations=[messages], tools=tools, chat_template=template, add_generation_prompt=prompt, bos_token="<s>", eos_token="</s>"
            )
            case["rendered"] = rendered[0]
        except Exception as e:
            case["raises"] = str(e)
        out.append(case)
    with open(sys.argv[1], "w", encoding="utf-8") as f:
        json.dump(out, f, ensure_ascii=False, indent=1)
        f.write("\n")


if __name__ == "__main__":
    main()
